#!/bin/bash
# One machine. On CPUs: LAUNCH="--multi_gpu --num_processes 2"; with --cpu accelerate starts a single process.
set -e
# shellcheck disable=SC2086
accelerate launch ${LAUNCH:---multi_gpu --num_processes 8} \
  -m backsight train "${MODEL:-detr-resnet-50}" --data "${DATA:-coco:/data/coco}" --out "${OUT:-runs/detr}" --resume "$@"
