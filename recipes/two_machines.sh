#!/bin/bash
# One run on two machines with 8 GPUs each. Start it on both, with the rank of the machine and the same flags of
# scripts/train.py; MAIN_IP is the address of the machine with rank 0:
#
#   MAIN_IP=10.0.0.1 bash recipes/two_machines.sh 0 --config recipes/imagenet1k_64.yaml --gradient_accumulation_steps 1
#   MAIN_IP=10.0.0.1 bash recipes/two_machines.sh 1 --config recipes/imagenet1k_64.yaml --gradient_accumulation_steps 1
#
# Both machines need the data and `output_dir` under the same paths, in a shared file system. The batches, their order
# and their noise are those of one machine, since `train_batch_size` counts the images of all processes together; with
# twice the processes, half the gradient accumulation steps use as much memory as before. SIGTERM or Ctrl-C on one of
# the machines saves a checkpoint and ends the run on both; the same commands resume it.
#
# NUM_PROCESSES: number of processes on both machines together. MAIN_PORT: a free port of the first machine.
set -eu
: "${MAIN_IP:?must be the address of the machine with rank 0}"
RANK=${1:?must be the rank of this machine: 0 or 1}
shift
exec python scripts/launch.py --config_file recipes/accelerate/ddp.yaml \
    --num_machines 2 --machine_rank "$RANK" --num_processes "${NUM_PROCESSES:-16}" \
    --main_process_ip "$MAIN_IP" --main_process_port "${MAIN_PORT:-29500}" \
    scripts/train.py "$@" --resume_from_checkpoint latest
