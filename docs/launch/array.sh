#!/bin/bash
#SBATCH --array=0-2 --gpus=1 --cpus-per-task=12 --time=24:00:00
# A seed a job; when all are done: backsight merge runs/detr-* --out runs/detr
backsight train detr-resnet-50 --data coco:/data/coco --out "runs/detr-$SLURM_ARRAY_TASK_ID" \
  --seeds 1 --seed "$SLURM_ARRAY_TASK_ID" --workers 10 --resume
