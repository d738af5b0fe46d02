#!/bin/bash
# One machine. A process that dies, or whose GPU does, is started again with the others, from the last checkpoint.
# SIGTERM is passed on; the processes then have two minutes to write a checkpoint (torchrun itself gives 30 s).
set -e
torchrun --standalone --nproc-per-node "${PROCESSES:-8}" --max-restarts "${RESTARTS:-3}" --shutdown-timeout 120 \
  -m backsight train "${MODEL:-detr-resnet-50}" --data "${DATA:-coco:/data/coco}" --out "${OUT:-runs/detr}" --resume "$@"
