#!/bin/bash
# A run on Hugging Face Jobs, with the flags of scripts/train.py. It needs `hf auth login`, and a bucket for the runs:
#
#   hf buckets create NAME/jet
#   REPOSITORY=https://github.com/NAME/jet_hf BUCKET=NAME/jet \
#       bash recipes/hf_jobs.sh --config recipes/cifar10.yaml --output_dir /runs/cifar10
#
# The bucket is mounted at /runs, so that checkpoints outlive the job: a job that fails or loses its machine is started
# again up to three times, and the same command resumes the run after a timeout. With `--push_to_hub true`, the model
# is pushed at each save too; HF_TOKEN lets the job do so.
#
# FLAVOR: hardware, see `hf jobs hardware`. TIMEOUT: longest duration of the job. IMAGE: a Docker image with Python and
# git; one with torch installs faster.
set -eu
: "${REPOSITORY:?must be the URL of a clone of this repository}" "${BUCKET:?must be the name of a bucket}"
SETUP='git clone --depth 1 "$0" jet_hf && cd jet_hf && pip install --quiet -c constraints.txt ".[train]"'
TRAIN='exec python scripts/launch.py --config_file recipes/accelerate/single_gpu.yaml scripts/train.py "$@"'
exec hf jobs run --detach --flavor "${FLAVOR:-a10g-large}" --timeout "${TIMEOUT:-12h}" --attempts 3 \
    --secrets HF_TOKEN --volume "hf://buckets/$BUCKET:/runs" "${IMAGE:-python:3.12}" -- \
    bash -c "$SETUP && $TRAIN" "$REPOSITORY" "$@" --resume_from_checkpoint latest
