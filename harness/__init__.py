"""One run, in the order the files are used, then what is done with its rows.

argv -> RunConfig -> [each rank] Workload -> Trial -> row  -> results/<machine>.csv -> compare
        asked        built                   seen     told                             judged

cli.py          the commands, thin
flags.py        the flags of `run`; config.py: RunConfig, what was asked; recipes.py: named settings, as data
resume.py       what a run that goes on may be asked
images.py       which images that means
run.py          the command `run`, from what was asked to its rows
resolve.py      what "auto" becomes on this machine, and what cannot be done
folders.py      a launch from its folder to its row, also when it ended without a word
launch.py       one process a rank, under torch elastic; join.py: one rank of torchrun's job; progress.py shows them at work
rank.py         one rank's process, from meeting the others to what it leaves
train.py        its run: compile, settle, timed windows, the parts alone; job.py: evaluating, saving and stopping in between
course.py       at which steps it evaluates, saves itself and ends; schedule.py, update.py: the learning rate of each
state.py        what a run is made of, out into a checkpoint and in again; checkpoint.py: that folder on the disk
seen.py         what a rank has seen so far, however it ends
agree.py        what ranks must agree on; heartbeat.py: which of them hangs
workload.py     RunConfig + rank -> Workload; the only file that builds models and pipelines
schemes.py      how ranks share a step: by images, by columns, or by both
measure.py      Workload, and the timed loop that writes down what it sees
telemetry.py    what the sensors say beside the loop
ceilings.py     the same workload with a part taken away, and what the devices do at their best
seeded.py       a step against eager float32; trace.py: a profile of some steps
trial.py        what was seen; metrics/: every number derived from it, pure functions
environment.py  the machine and its software
rows.py         a row and its digests; results.py: tables, run folders
summary.py      a row as a person reads it; advice.py: what bounded it and what to try
data.py         the commands about sets of images: check, prepare, statistics
evaluate.py     the error of checkpoints, alone and averaged; showing.py: of which images, answers.py, predictions.py: what they said of each
compare.py      two tables: which is faster, by how much, and whether it may be said; pairs.py: which rows may be compared
noise.py        a machine against itself: what compare must allow for

forecast/       what it should cost, before it is seen

paper/          the paper's claims, tables and figures beside what was run here

doctor.py       before a run: what this machine has and lacks; certify.py: is our code right on it, by checks.py
box/            is the machine itself well
"""
