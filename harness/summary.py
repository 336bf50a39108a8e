"""A row as a person reads it at the end of a run: about ten lines, and the most useful thing to try next."""

from __future__ import annotations


def figure(cell: str, unit: str = "", digits: int = 3) -> str:
    """`1,234 images/s`, to `digits` significant digits at least; a dash for an empty cell."""
    if not cell:
        return "-"
    number = float(cell)
    text = f"{number:,.0f}" if abs(number) >= 10 ** (digits - 1) else f"{number:.{digits}g}"
    return f"{text} {unit}".strip()


def ranks_of(row: dict[str, str]) -> int:
    return int(row["gpus"] or 0) or int(row["cpus"] or 0) or 1


def where(row: dict[str, str]) -> str:
    if int(row["gpus"] or 0):
        return f"{row['gpus']} x {row['gpu_name'] or 'GPU of unknown name'}"
    count = ranks_of(row)
    plural = "s" if count > 1 else ""
    return f"{count} CPU rank{plural} x {row['torch_threads']} threads on {row['cpu_name'] or 'a CPU of unknown name'}"


def speeds(row: dict[str, str]) -> str:
    """The three figures that stand together, and each for one rank where there are more."""
    names = ("images_per_s", "input_alone_images_per_s", "model_alone_images_per_s")
    cells = [row[name] for name in names]
    line = "trained {} | input alone {} | model alone {}  images/s".format(*map(figure, cells))
    ranks = ranks_of(row)
    if ranks > 1:
        each = (figure(str(float(cell) / ranks)) if cell else "-" for cell in cells)
        line += "   (a rank: {} | {} | {})".format(*each)
    return line


def limits(row: dict[str, str]) -> str:
    if not row["bound_by"] and not row["pct_of_limit"]:
        return "not measured in this launch (the first of a group measures it)"
    return f"bound by {row['bound_by'] or 'unknown'}; {figure(row['pct_of_model_alone'])} % of model alone, {figure(row['pct_of_limit'])} % of the limit of both"


def memory(row: dict[str, str]) -> str:
    gpu = figure(row["gpu_peak_allocated_gib"])
    on_gpu = f"{gpu} GiB of {figure(row['gpu_memory_gib'])} GiB GPU memory in torch, " if gpu != "-" else ""
    return f"{on_gpu}{figure(row['host_peak_rss_gib'])} GiB of the host"


def errors(row: dict[str, str]) -> str:
    if not row["val_top1_error_pct"]:
        return "no validation set (its error columns stay empty)" if row["val_images"] == "0" else "not evaluated"
    return f"validation error top-1 {figure(row['val_top1_error_pct'])} %, top-5 {figure(row['val_top5_error_pct'])} % on {row['val_images']} images"


def next_step(row: dict[str, str]) -> str:
    """The most useful thing to try after this row."""
    if row["status"] == "oom":
        return f"--images-per-gpu {max(1, int(row['images_per_gpu']) // 2)}"
    if row["status"] not in ("ok", "throttled", "contaminated"):
        return "mend the reason above: this speed does not count"
    if row["bound_by"] == "input":
        return f"more input threads (--dali-threads, now {row['dali_threads']}), or --augment rrc in place of a costlier one"
    if row["learning"] == "too short":
        return "a longer run (--steps 200 or more) to see it learn; --launches 3 for an interval"
    if row["learning"] == "flat":
        return "the loss is flat: try --init code2012 or a lower --learning-rate before trusting what it learns"
    return "--launches 3 for an interval, then `compare` with another machine's table"


def summary(row: dict[str, str], table: str) -> str:
    """The closing lines of one launch."""
    counts = f"status {row['status']}" + (f": {row['status_reason']}" if row["status_reason"] else "")
    steps = f"p50 {figure(row['step_ms_p50'])} ms, p99 {figure(row['step_ms_p99'])} ms, {figure(row['data_wait_pct'])} % of the time waiting for data"
    learned = f"loss {figure(row['loss_first'])} -> {figure(row['loss_last'])} in {figure(row['images_seen'])} images; learning: {row['learning'] or 'unknown'}"
    lines = {
        "ran": f"{row['model']}, {row['precision']}, {row['images_per_gpu']} images a rank, {row['pipeline']} {row['augment']} on {row['dataset_id']} ({row['train_images']} images, {row['classes']} classes)",
        "on": where(row),
        "speed": speeds(row),
        "limit": limits(row),
        "step": f"{steps} ({row['timed_steps'] or 0} timed after {row['warmup_steps'] or 0} to warm up{'' if row['settled'] == 'true' else ', not settled'})",
        "memory": memory(row),
        "learning": learned,
        "error": errors(row),
        "row": f"{counts}; {row['run_id']} in {table}",
        "next": next_step(row),
    }
    return "\n".join(f"{name + ':':<10}{line}" for name, line in lines.items())
