#!/bin/bash
#SBATCH --nodes=4 --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=12
#SBATCH --time=04:00:00 --requeue --open-mode=append
#SBATCH --signal=USR1@180
# Three minutes before the time is up every task gets SIGUSR1, and writes a checkpoint; the workers that read images
# ignore it. A finished run has its card.md; until then the job queues itself again.
export OMP_NUM_THREADS=1
srun backsight train detr-resnet-50 --data coco:/data/coco --out /shared/runs/detr --batch-size 512 --workers 10 --resume
[ -f /shared/runs/detr/card.md ] || scontrol requeue "$SLURM_JOB_ID"
