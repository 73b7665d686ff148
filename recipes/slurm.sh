#!/bin/bash
# Train on two Slurm nodes with eight GPUs each, for as many time limits as it takes. In a checkout:
#
#   sbatch recipes/slurm.sh --config recipes/imagenet1k_64.yaml --output_dir $SCRATCH/imagenet1k_64
#
# Ten minutes before its time limit, Slurm signals this script. It lets the run save a checkpoint, waits for it and
# requeues the job, which resumes from the checkpoint. `--requeue` alone only requeues jobs that were preempted or lost
# a node. A job that ends without the signal is not requeued: its exit code is 0 if the run has finished.
#SBATCH --job-name=jet
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append

stopped=false
stop() {
    stopped=true
    scancel --signal=TERM "$SLURM_JOB_ID"  # to the training processes, but not to this script
}
trap stop USR1

GPUS_PER_NODE=${SLURM_GPUS_ON_NODE:-8}
MAIN_NODE=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
PORT=$((20000 + SLURM_JOB_ID % 10000))
export GPUS_PER_NODE MAIN_NODE PORT

# There is one launcher on each node, which waits for the checkpoint, however long that takes.
# shellcheck disable=SC2016  # the nodes expand the variables
srun bash -c 'exec python scripts/launch.py --config_file recipes/accelerate/ddp.yaml \
    --num_machines "$SLURM_NNODES" --machine_rank "$SLURM_NODEID" --num_processes $((SLURM_NNODES * GPUS_PER_NODE)) \
    --main_process_ip "$MAIN_NODE" --main_process_port "$PORT" \
    scripts/train.py --resume_from_checkpoint latest "$@"' train "$@" &
wait $!
code=$?
if $stopped; then
    wait $!  # the signal has ended the wait above
    exec scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
