"""Predictions: counts that are exact, ranges that are what they say, and the page that is what the command prints."""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from literals import record_of

from harness.config import AskedWrongly
from harness.forecast import add_predict
from harness.forecast.cards import CARDS, CPUS, EVERYWHERE, ON_GPU, Device, Figure, Interval, Link, assumed, datasheet
from harness.forecast.confront import confrontation, device_of, route_of, said, told, unpredictable
from harness.forecast.counts import (
    ALEXNET,
    COLUMN_PARAMETERS,
    CONV_PARAMETERS,
    PARAMETERS,
    columns_numbers_an_image,
    exchanged_bytes,
    hybrid_numbers_an_image,
    parameters_held,
    sent,
    training_macs,
)
from harness.forecast.roofline import (
    At,
    all_reduce_ms,
    bound_by,
    compute_s,
    exchange_s,
    exposed_s,
    input_alone,
    layer_s,
    memory_gib,
    predict,
    shared,
    spread,
    together,
)
from harness.rows import row_of

ROOT = Path(__file__).parents[1]
TABLE = "results/amd-epyc-2-cores.csv"


def exact(value: float) -> Figure:
    return datasheet(value, "a test")


LINK = Link("a link", exact(10), exact(0.5), exact(100))
SURE = {name: exact(figure.middle) for name, figure in ON_GPU.items()} | {
    "conv1, share of the peak": exact(0.5),
    "conv2 to conv5, share of the peak": exact(0.5),
    "fc6 to fc8, share of the peak": exact(0.5),
    "share of memory bandwidth": exact(0.5),
    "passes over other layers' outputs": exact(0),
}
GPU = Device(
    "a GPU", ("Example GPU",), {"bf16": exact(2), "fp32": exact(1)}, exact(1000), LINK, exact(10),
    {"mixed": exact(3000)}, exact(16), LINK, assumed=SURE,
)  # fmt: skip


def card(name: str) -> Device:
    return next(device for device in (*CARDS, *CPUS) if device.name == name)


# --- counts -------------------------------------------------------------------------------------------------------


def test_the_network_counts_what_the_paper_has() -> None:
    assert training_macs() == 2_067_805_248
    assert PARAMETERS == sum(COLUMN_PARAMETERS) == 60_965_224
    assert CONV_PARAMETERS == 2_334_080


def test_columns_exchange_the_papers_numbers_forward_and_the_same_back() -> None:
    assert columns_numbers_an_image() == 58_624
    assert exchanged_bytes("columns", 2, 64, 4) == 2 * 58_624 * 128 * 4


def test_data_parallel_sends_every_gradient_around_a_ring_whatever_the_batch() -> None:
    assert exchanged_bytes("data", 2, 32, 4) == exchanged_bytes("data", 2, 1024, 2) == 487_721_792
    assert exchanged_bytes("data", 4, 32, 4) == 3 * 487_721_792


def test_hybrid_sends_features_units_and_partial_sums_and_the_convolutions_gradients() -> None:
    assert hybrid_numbers_an_image(2) == 9216 + 4096 + 1000
    assert hybrid_numbers_an_image(4) == 3 * 14_312
    assert exchanged_bytes("hybrid", 2, 1024, 2) == 2 * 14_312 * 2048 * 2 + 2 * 2_335_080 * 4


def test_columns_on_four_ranks_are_two_pairs_and_two_rings_of_two() -> None:
    pairs = 2 * exchanged_bytes("columns", 2, 32, 4)
    assert exchanged_bytes("columns", 4, 32, 4) == pairs + 2 * 4 * 60_965_224


def test_fewer_classes_make_fc8_smaller_wherever_it_crosses() -> None:
    fewer = 990 * 4097
    assert exchanged_bytes("data", 2, 32, 4, classes=10) == 487_721_792 - 8 * fewer
    assert exchanged_bytes("columns", 2, 64, 4, classes=10) == exchanged_bytes("columns", 2, 64, 4)
    assert exchanged_bytes("columns", 4, 32, 4, classes=10) == exchanged_bytes("columns", 4, 32, 4) - 2 * 4 * fewer
    assert exchanged_bytes("hybrid", 2, 32, 4, classes=10) == 2 * 13_322 * 64 * 4 + 2 * 2_334_090 * 4


@pytest.mark.parametrize("scheme", ["data", "columns", "hybrid"])
def test_one_rank_exchanges_nothing_and_holds_everything(scheme: str) -> None:
    assert exchanged_bytes(scheme, 1, 32, 4) == 0
    assert sent(scheme, 1, 32, 4).gradient_collectives == sent(scheme, 1, 32, 4).activation_collectives == 0
    assert parameters_held(scheme, 1) == PARAMETERS


def test_the_busiest_column_is_the_one_that_also_hands_over_its_units_for_fc8() -> None:
    assert sent("columns", 2, 1, 1).activation_bytes == 2 * 2 * 30_336
    assert parameters_held("columns", 2) == 32_531_112
    assert parameters_held("hybrid", 2) == 2_334_080 + 58_631_144 / 2


# --- time ---------------------------------------------------------------------------------------------------------


def test_a_layer_takes_the_longer_of_its_arithmetic_and_its_bytes() -> None:
    fc8 = ALEXNET[-1]
    # 6 FLOP a multiply-add at half of 2 TFLOP/s; three products of 2-byte numbers at half of 1,000 GB/s.
    assert layer_s(At(), GPU, fc8, 1000, "bf16") == pytest.approx(6 * 4_096_000 * 1000 / 1e12)
    assert layer_s(At(), GPU, fc8, 1, "bf16") == pytest.approx(6 * (4096 + 1000 + 4_097_000) / 500e9)


def test_conv1_needs_no_gradient_of_the_image() -> None:
    device = replace(GPU, memory_gb_per_s=exact(1e9))
    assert layer_s(At(), device, ALEXNET[0], 10, "bf16") == pytest.approx(4 * 105_415_200 * 10 / 1e12)


def test_two_columns_share_one_network_except_for_fc8() -> None:
    device = replace(GPU, memory_gb_per_s=exact(1e9))
    extra = 6 * 4_096_000 * 100 / 1e12
    whole, column = (compute_s(At(), device, 100, "bf16", scheme, 2) for scheme in ("data", "columns"))
    assert column - whole == pytest.approx(extra)
    assert compute_s(At(), device, 100, "bf16", "hybrid", 2) == pytest.approx(whole)


def test_an_exchange_takes_its_bytes_over_what_the_link_reaches_and_its_starts() -> None:
    gradients, activations = exchange_s(At(), "data", 2, 1024, "bf16", LINK)
    assert [gradients, activations] == pytest.approx([243_860_896 / 5e9 + 10 * 100e-6, 0])
    gradients, activations = exchange_s(At(), "columns", 2, 1024, "bf16", LINK)
    assert [gradients, activations] == pytest.approx([0, 2 * 30_336 * 2048 * 2 / 5e9 + 8 * 100e-6])
    assert all_reduce_ms(LINK, 2).middle == pytest.approx(243_860_896 / 5e9 * 1000 + 0.1)


def test_gradients_hide_under_the_step_and_activations_do_not() -> None:
    assert exposed_s(At(), GPU, 1.0, 0.4, 0.0) == pytest.approx(0.15 * 0.4)
    assert exposed_s(At(), GPU, 1.0, 1.0, 0.0) == pytest.approx(0.55)
    assert exposed_s(At(), GPU, 1.0, 0.0, 1.0) == pytest.approx(0.9)


def test_between_nodes_a_group_reaches_what_its_network_adapters_do() -> None:
    h100 = card("H100 SXM")
    inside, across = (exchange_s(At(), "data", ranks, 1024, "bf16", h100.link)[0] for ranks in (8, 16))
    bytes_8, bytes_16 = (2 * (ranks - 1) / ranks * 243_860_896 for ranks in (8, 16))
    assert inside == pytest.approx(bytes_8 / 337.5e9 + 10 * 15e-6)
    assert across == pytest.approx(bytes_16 / 320e9 + 10 * 35e-6)


# --- ranges -------------------------------------------------------------------------------------------------------


def test_a_range_is_the_root_of_the_squares_of_what_single_figures_do() -> None:
    one, other = assumed(1, 2, 4, "a test"), assumed(5, 10, 20, "a test")
    found = spread(lambda at: {"product": at(one) * at(other), "quotient": at(one) / at(other)})
    factor = 2 ** math.sqrt(2)
    for name, middle in (("product", 20), ("quotient", 0.2)):
        near = (found[name].low, found[name].middle, found[name].high)
        assert near == pytest.approx((middle / factor, middle, middle * factor))


def test_a_figure_that_is_read_twice_errs_once() -> None:
    one = assumed(1, 2, 4, "a test")
    assert spread(lambda at: {"nothing": at(one) / at(one)})["nothing"] == Interval(1, 1, 1)
    assert spread(lambda at: {"square": at(one) * at(one)})["square"].high == pytest.approx(16)


def test_what_is_known_exactly_has_no_range() -> None:
    assert spread(lambda at: {"it": at(exact(7))})["it"] == Interval(7, 7, 7)
    assert told(Interval(1008, 1008, 1008)) == "1,008"


@pytest.mark.parametrize(
    ("ratio", "scaling", "told_as"),
    [
        (Interval(0.5, 0.6, 0.7), Interval(0.9, 0.99, 1), "input"),
        (Interval(2, 3, 4), Interval(0.96, 0.99, 1), "model"),
        (Interval(2, 3, 4), Interval(0.8, 0.9, 0.99), "communication or model"),
        (Interval(0.9, 1.1, 2), Interval(0.96, 0.97, 0.99), "model or input"),
    ],
)
def test_bound_by_tells_the_middle_and_what_the_ranges_leave_open(
    ratio: Interval, scaling: Interval, told_as: str
) -> None:
    assert bound_by(ratio, scaling) == told_as


# --- input, memory ------------------------------------------------------------------------------------------------


def test_the_host_decodes_by_its_cores_and_no_faster_than_the_link_carries() -> None:
    rate = EVERYWHERE["original JPEG, images/s a host core"].middle
    assert input_alone(GPU, "original JPEG, cpu") == Interval(3200, rate * 10, 3200)
    by_link = 5e9 / 602_112
    assert input_alone(replace(GPU, cores=exact(100)), "original JPEG, cpu") == Interval(by_link, by_link, by_link)
    assert input_alone(GPU, "original JPEG, mixed, hardware engine") is None
    assert input_alone(GPU, "original JPEG, mixed") == Interval(3000, 3000, 3000)


def test_columns_halve_the_input_for_both_read_every_image_of_the_pair() -> None:
    pair, each = (predict(GPU, scheme, 2, 64, "bf16", "original JPEG, mixed") for scheme in ("columns", "data"))
    assert (pair.input_alone.middle, each.input_alone.middle) == (3000, 6000)


def test_a_cpu_takes_turns_between_input_and_model_and_ranks_share_its_cores() -> None:
    cpu = card("AMD EPYC, 2 cores")
    assert together(At(), cpu, 300, 150) == pytest.approx(100)
    assert shared(cpu, 2).cores.middle == 1
    assert shared(GPU, 2) is GPU
    assert predict(shared(cpu, 2), "data", 2, 32, "fp32", None).no_comm.middle == pytest.approx(
        predict(cpu, "data", 1, 32, "fp32", None).no_comm.middle, rel=0.05
    )


def test_memory_holds_parameters_activations_what_dali_keeps_and_libraries() -> None:
    # Of 122,464 pooled numbers a byte each is kept beside; three batches of float crops and decoded pictures.
    after = sum(layer.outputs for layer in ALEXNET)
    kept = 2 * (150_528 + 122_464 + after) + 122_464
    a_image = 1.5 * kept + 3 * (4 * 150_528 + 562_500)
    expected = (1024 * a_image + 14 * 60_965_224) / 2**30 + 1.3
    assert memory_gib(GPU, 1024, "bf16").middle == pytest.approx(expected)


# --- real rows ----------------------------------------------------------------------------------------------------


def row_on(gpu_name: str, **cells: str) -> dict[str, str]:
    known = {"gpu_name": gpu_name, "gpus": "1", "model": "alexnet", "precision": "bf16", "images_per_gpu": "1024"}
    return row_of(record_of()) | known | {"pipeline": "synthetic", "gpu_link": ""} | cells


def test_a_real_row_is_held_against_its_card_quantity_by_quantity() -> None:
    middle = predict(card("H100 SXM"), "data", 1, 1024, "bf16", None).model_alone.middle
    row = row_on("NVIDIA H100 80GB HBM3", model_alone_images_per_s=str(middle), images_per_s="1", bound_by="model")
    text = confrontation([row | {"no_comm_images_per_s": "", "gpu_peak_process_gib": ""}])
    cells = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if line.startswith("|")]
    verdicts = {line[1]: line[4] for line in cells}
    assert verdicts["model alone, images/s"] == "inside"
    assert verdicts["trained, images/s"] == "OUTSIDE"
    assert verdicts["bound by"] == "inside"
    assert text.endswith("2 of 3 figures inside what was predicted.")


def test_what_was_exchanged_is_held_against_the_count_to_the_cells_rounding() -> None:
    cells = {"gpus": "2", "parallel": "data", "classes": "1000"}
    exact, off = (
        confrontation([row_on("NVIDIA H200", **cells, exchange_mib_per_step=mib)]) for mib in ("465.128", "465.2")
    )
    lines = [line for text in (exact, off) for line in text.splitlines() if "exchanged a step, MiB" in line]
    assert ["OUTSIDE" in line for line in lines] == [False, True]


def test_a_device_that_is_not_known_is_said_so_in_a_sentence() -> None:
    text = confrontation([row_on("NVIDIA X9000")])
    assert "No prediction: NVIDIA X9000 is not among the devices of harness/forecast/cards.py." in text


@pytest.mark.parametrize(
    ("cells", "why"),
    [
        ({"model": "cifar-18pct"}, "only AlexNet is predicted and it trained cifar-18pct"),
        ({"pipeline": "torch"}, "--pipeline torch is not predicted"),
        ({"parallel": "columns", "gpus": "3"}, "columns come in pairs and it had 3 ranks"),
        ({"precision": "fp64"}, "no fp64 rate of H200 is known"),
        ({"images_per_gpu": ""}, "it does not say how many images a rank a step"),
    ],
)
def test_a_row_that_cannot_be_predicted_says_why(cells: dict[str, str], why: str) -> None:
    assert unpredictable(row_on("NVIDIA H200", **cells)) == why


def test_the_way_of_the_images_is_read_from_the_row() -> None:
    a100, row = card("A100 SXM 80GB"), row_on("NVIDIA A100-SXM4-80GB", decode="mixed", source_form="folders")
    assert device_of(row) is a100
    assert route_of(row, a100) == "original JPEG, mixed, hardware engine"
    assert route_of(row | {"hw_decoder_load": "0"}, a100) == "original JPEG, mixed"
    assert route_of(row | {"source_form": "prepared-jpeg"}, a100) == "prepared JPEG, mixed"
    assert route_of(row | {"source_form": "prepared-raw"}, a100) == "prepared raw"
    assert route_of(row | {"decode": "cpu"}, a100) == "original JPEG, cpu"


def test_every_figure_says_where_it_is_from() -> None:
    figures = [*ON_GPU.values(), *(figure for device in CARDS for figure in device.decode.values())]
    assert all(figure.kind in ("datasheet", "published", "measured", "counted", "assumed") for figure in figures)
    assert all(figure.source for figure in figures)


# --- the command --------------------------------------------------------------------------------------------------


def command(*words: str) -> int:
    parser = argparse.ArgumentParser()
    add_predict(parser.add_subparsers())
    asked = parser.parse_args(["predict", *words])
    return int(asked.call(asked))


def test_the_document_is_what_the_command_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    assert command(TABLE) == 0
    document = (ROOT / "docs" / "predictions.md").read_text(encoding="utf-8")
    assert capsys.readouterr().out == document, f"python -m harness predict {TABLE} > docs/predictions.md"


def test_the_command_says_what_to_do_where_it_cannot_serve(tmp_path: Path) -> None:
    with pytest.raises(AskedWrongly, match="name one"):
        command("--confront")
    with pytest.raises(AskedWrongly, match="there is no table"):
        command("--confront", str(tmp_path / "none.csv"))
    with pytest.raises(AskedWrongly, match="leave it out"):
        command("--measure", TABLE)


def test_predictions_need_neither_torch_nor_numpy() -> None:
    program = (
        "import sys\nfor name in ('torch', 'numpy', 'pandas', 'nvidia'): sys.modules[name] = None\n"
        "from harness.forecast.page import page\nprint(len(page([], '')))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_figures_are_said_in_three_digits_with_thousands_apart() -> None:
    assert [said(value) for value in (17_333.2, 999.6, 12.345, 0.06213, 0)] == [
        "17,300",
        "1,000",
        "12.3",
        "0.0621",
        "0",
    ]
    assert told(Interval(7149, 17333, 30736)) == "17,300 (7,150 to 30,700)"
