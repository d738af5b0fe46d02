#!/bin/bash
# sbatch slurm.sh --batch-size 512 --workers 10
#SBATCH --nodes=4 --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=12
#SBATCH --time=04:00:00 --requeue --open-mode=append
#SBATCH --signal=USR1@180
# Three minutes before the time is up every task gets SIGUSR1, writes a checkpoint and ends with status 0; the workers that
# read images ignore it. A finished run has its card.md; until then the job queues itself again, but not after a mistake.
export OMP_NUM_THREADS=1
OUT=${OUT:-/shared/runs/detr}
srun --cpus-per-task "$SLURM_CPUS_PER_TASK" backsight train "${MODEL:-detr-resnet-50}" --data "${DATA:-coco:/data/coco}" --out "$OUT" --resume "$@" &&
  { [ -f "$OUT/card.md" ] || scontrol requeue "$SLURM_JOB_ID"; }
