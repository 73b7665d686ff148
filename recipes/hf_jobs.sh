#!/bin/bash
# A run on Hugging Face Jobs, with the flags of scripts/train.py, or a sweep, with those of scripts/sweep.py and one job
# for each of its runs. It needs `hf auth login`, and a bucket for the runs:
#
#   hf buckets create NAME/jet
#   export REPOSITORY=https://github.com/NAME/jet_hf BUCKET=NAME/jet
#   bash recipes/hf_jobs.sh --config recipes/cifar10.yaml --output_dir /runs/cifar10
#   bash recipes/hf_jobs.sh sweep --grid recipes/sweeps/rates_and_widths.yaml --override dataset_path=/runs/photographs
#
# The bucket is mounted at /runs, so that checkpoints outlive the job: a job that fails or loses its machine is started
# again up to three times, and the same command resumes the run after a timeout. With `--push_to_hub true`, the model
# is pushed at each save too; HF_TOKEN lets the job do so.
#
# Data from this machine reach the jobs through the bucket, and the runs of a sweep come back for its table:
#
#   hf buckets sync data/photographs hf://buckets/NAME/jet/photographs
#   hf buckets sync hf://buckets/NAME/jet/sweep runs/sweep
#   python scripts/sweep.py --grid recipes/sweeps/rates_and_widths.yaml --override dataset_path=/runs/photographs \
#       --report_only
#
# `hf jobs run --attempts` needs huggingface_hub 2.4; 1.33 does not have it.
#
# FLAVOR: hardware, see `hf jobs hardware`. TIMEOUT: longest duration of the job. IMAGE: a Docker image with Python and
# git; one with torch installs faster.
set -eu
: "${REPOSITORY:?must be the URL of a clone of this repository}" "${BUCKET:?must be the name of a bucket}"
SETUP='git clone --depth 1 "$0" jet_hf && cd jet_hf && pip install --quiet -c constraints.txt ".[train]"'
HARDWARE=recipes/accelerate/single_gpu.yaml

submit() { # a command, and its arguments
    hf jobs run --detach --flavor "${FLAVOR:-a10g-large}" --timeout "${TIMEOUT:-12h}" --attempts 3 \
        --secrets HF_TOKEN --volume "hf://buckets/$BUCKET:/runs" "${IMAGE:-python:3.12}" -- \
        bash -c "$SETUP && exec $1" "$REPOSITORY" "${@:2}"
}

if [ "${1:-}" = sweep ]; then
    # All commands come first, so that a mistake in the sweep submits no job.
    commands=$(python scripts/sweep.py "${@:2}" --output_dir /runs/sweep --accelerate_config $HARDWARE --print_commands)
    while read -r command; do
        [ -z "$command" ] || submit "$command" < /dev/null
    done <<< "$commands"
else
    submit "python scripts/launch.py --config_file $HARDWARE scripts/train.py"' "$@"' "$@" --resume_from_checkpoint latest
fi
