#!/bin/bash
#SBATCH --array=0-2 --gpus=1 --cpus-per-task=12 --time=24:00:00
# sbatch array.sh --workers 10: a seed a job; when all are done: backsight merge runs/detr-* --out runs/detr
backsight train "${MODEL:-detr-resnet-50}" --data "${DATA:-coco:/data/coco}" --out "${OUT:-runs/detr}-$SLURM_ARRAY_TASK_ID" \
  --seeds 1 --seed "$SLURM_ARRAY_TASK_ID" --resume "$@"
