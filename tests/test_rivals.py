"""Whether methods are ahead of what they are made of: verdicts of league runs, computed once more by scipy."""

import numpy as np
import pytest
from scipy.stats import ttest_rel
from small import home  # noqa: F401

import peftlab as pl
from peftlab import PeftlabError, budgets, rivals, studies
from peftlab.claims import FAILS, HOLDS, UNDECIDED


def runs(**scores):
    """Results of made-up runs: method=(score on test of each seed), validation the same unless told as a pair."""
    made = []
    for name, given in scores.items():
        test, validation = given if isinstance(given[0], tuple) else (given, given)
        for seed, (s, v) in enumerate(zip(test, validation, strict=True)):
            one = pl.spec(name.replace("_", "-"), task="entail", seed=seed)
            made.append(pl.Result(one, f"{name}{seed}", "entail", "accuracy", score=s, validation=v))
    return made


LORA, PREFIX = (0.8, 0.82, 0.78, 0.81), (0.5, 0.52, 0.48, 0.5)


def test_parts_come_from_the_rows_of_a_recipe():
    singles = ["adapter", "pfeiffer", "scaled-parallel", "prefix", "lora"]
    assert rivals.made_of("mam", singles) == ["adapter", "scaled-parallel", "prefix"]
    assert rivals.made_of("unipelt", [*singles, "mam"]) == ["adapter", "pfeiffer", "prefix", "lora"]
    assert rivals.made_of("propetl-lora", singles) == ["lora"] and not rivals.made_of("scaled-parallel", singles)


@pytest.mark.parametrize(
    "gain, verdict",
    [((0.03, 0.05, 0.04, 0.05), HOLDS), ((-0.03, -0.05, -0.04, -0.05), FAILS), ((0.1, -0.1, 0, 0), UNDECIDED)],
)
def test_paired_seeds_decide(gain, verdict):
    mam = tuple(a + g for a, g in zip(LORA, gain, strict=True))
    (row,) = rivals.ahead(runs(prefix=PREFIX, scaled_parallel=LORA, lora=(0.99,) * 4, mam=mam))
    known = ttest_rel(mam, LORA).confidence_interval()
    assert row["rival"] == "scaled parallel adapter" and row["against"] == 2, "LoRA is no part of MAM"
    assert (row["effect"], row["low"], row["high"]) == pytest.approx((np.mean(gain), *known))
    assert row["verdict"] == verdict and row["seeds"] == 4


def test_the_rival_is_chosen_on_validation_and_baselines_are_none():
    worse = tuple(s - 0.2 for s in LORA)
    given = runs(lora=LORA, prefix=(LORA, worse), full=(0.99,) * 4, propetl_lora=PREFIX)
    (row,) = rivals.ahead(given, "propetl-lora")
    assert row["rival"] == "LoRA" and row["against"] == 2
    (row,) = rivals.ahead(runs(lora=(LORA, worse), prefix=LORA, propetl_lora=PREFIX), "propetl-lora")
    assert row["rival"] == "prefix-tuning"


def test_a_margin_asks_only_to_be_no_worse_than_that():
    less = tuple(s - d for s, d in zip(LORA, (0.01, 0.012, 0.011, 0.01), strict=True))
    given = runs(lora=LORA, propetl_lora=less)
    verdict = lambda margin: rivals.ahead(given, "propetl-lora", margin)[0]["verdict"]
    assert [verdict(m) for m in (0, 0.005, 0.02)] == [FAILS, FAILS, HOLDS]


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(PeftlabError, match="made of others"):
        rivals.ahead(runs(lora=LORA, prefix=PREFIX))
    with pytest.raises(PeftlabError, match="'mma'.*mam"):
        rivals.ahead(runs(lora=LORA, mam=LORA), "mma")
    with pytest.raises(PeftlabError, match="share 1 seeds"):
        rivals.ahead(runs(scaled_parallel=LORA, mam=LORA[:1]))


def test_the_figure_has_a_line_for_each_and_a_colour_for_each_verdict():
    more = tuple(s + 0.05 + i / 100 for i, s in enumerate(LORA))
    given = runs(scaled_parallel=LORA, mam=more, lora=LORA, unipelt=PREFIX)
    figure = pl.plots.leads(given)
    assert [*figure.layout.yaxis.ticktext] == ["MAM adapter − scaled parallel adapter", "UniPELT − LoRA"]
    assert {t.name: [*t.y] for t in figure.data} == {f"✔ {HOLDS}": [0], f"✘ {FAILS}": [1]}
    for trace, row in zip(figure.data, rivals.ahead(given), strict=True):
        ends = trace.x[0], trace.x[0] + trace.error_x.array[0]
        assert ends == pytest.approx((100 * row["effect"], 100 * row["high"]))
    lines = pl.plots.leads(given, "unipelt", 0.02).layout.shapes
    assert {s.x0 for s in lines} == {0, -2}


def test_a_point_of_a_space_has_its_name_in_the_league():
    entry, L = budgets.LEAGUES["hybrid"].entry("autopeft", 0), budgets.LEAGUES["hybrid"]
    assert budgets.called(entry["recipe"]) == "autopeft" and "autopeft" not in budgets.name_of(entry["recipe"])
    assert {budgets.called(L.entry(m, 0)["recipe"]) for m in L.entries} == {*L.entries}
    given = [pl.Result(entry, "x", "entail", "accuracy", score=0.5, validation=0.5)]
    assert [*budgets.named(given).title] == ["AutoPEFT"] == [*pl.plots.league(given).data[0].y]


# What S³Delta keeps -------------------------------------------------------------------------------


def candidates(p, kept):
    places = [("lora", "q", 0), ("lora", "q", 1), ("bias", "up", 0)]
    return [
        dict(layer=layer, site=site, kind=kind, p=chance, kept=k, numbers=n)
        for (kind, site, layer), chance, k, n in zip(places, p, kept, (100, 100, 50), strict=True)
    ]


def test_a_cell_is_the_mean_chance_and_its_words_are_the_seeds():
    one, two = candidates((0.9, 0.1, 0.5), (1, 0, 1)), candidates((0.7, 0.3, 0.1), (1, 1, 0))
    rows = [dict(task="reviews", seed=s, candidates=c) for s, c in enumerate((one, two))]
    figure = pl.plots.structure(rows)
    (tile,) = figure.data
    assert [*figure.layout.yaxis.ticktext] == ["lora q", "bias up"] and [*tile.x] == [0, 1]
    assert [*map(list, tile.z)] == [[0.8, 0.2], [0.3, None]] and [*map(list, tile.text)] == [["2", "1"], ["1", None]]
    assert "175 numbers, of these lora 86%, bias 14%" in figure.layout.title.text
    alone = pl.plots.structure(candidates((None,) * 3, (1, 0, 1)))
    assert [*map(list, alone.data[0].text)] == [["kept", ""], ["kept", None]]
    with pytest.raises(PeftlabError, match="no rows"):
        pl.plots.structure([])


def test_the_study_tells_what_the_gates_chose(home):  # noqa: F811
    small = dict(task="entail", budget=0.2, backbone="nano-encoder", steps=2)
    (row,) = pl.study("structured", [0], **small)
    spec = pl.spec("s3delta", task="entail", seed=0, backbone="nano-encoder", steps=2, budget=0.2)
    model, _, undo = pl.trained(spec)
    kept = [c for c in row["candidates"] if c["kept"]]
    assert sum(c["numbers"] for c in kept) <= pl.counts(model)["delta"] and kept
    assert [c["kept"] for c in row["candidates"]] == [c["kept"] for c in pl.structure(model, undo)]


# What searches find -------------------------------------------------------------------------------


def test_a_search_is_kept_whole(home):  # noqa: F811
    (row,) = pl.study("searched", [0], how="random", evaluations=14, steps=2)
    found = pl.Search.of(row["search"])
    assert len(found.trials) == 14 and found.front() and row["again"][0]["seeds"] == [*range(100, 105)]
    assert pl.plots.curse(row["again"]).data and pl.plots.front(found).data


def test_shipping_takes_what_was_made_at_home(home, monkeypatch):  # noqa: F811
    monkeypatch.setattr(studies, "data", lambda: home / "data")
    (home / "data/studies").mkdir(parents=True)
    monkeypatch.setitem(studies.STUDIES, "toy", studies.Study(lambda seed, d: dict(x=d), dict(d=(1, 2)), (0, 1)))
    pl.study("toy", range(3))
    assert studies.ship("toy") == 4 and not studies.own("toy").is_relative_to(home / "data")
    studies.own("toy").unlink()
    again = studies.STUDIES["toy"]._replace(make=lambda seed, d: pytest.fail("made again"))
    monkeypatch.setitem(studies.STUDIES, "toy", again)
    assert len(pl.study("toy")) == 4


# What a bit is worth ------------------------------------------------------------------------------


def test_a_method_stands_beside_the_lora_nearest_to_its_bits():
    rows = [dict(r=r, seed=s, score=0.1 * r + s / 100, bits=64_000 * r) for r in (1, 4) for s in range(3)]
    given = runs(propetl_lora=(0.4, 0.42, 0.41), lora=(0.6, 0.62, 0.64))
    for r in given:
        r.counts = dict(stored_bits=70_000 if r.hash.startswith("propetl") else 512_000)
    figure = pl.plots.per_bit(given, rows)
    gaps = np.subtract((0.4, 0.42, 0.41), (0.1, 0.11, 0.12))
    half = ttest_rel(gaps, np.zeros(3)).confidence_interval().high - gaps.mean()
    first, second = figure.layout.title.text.split("<br>")
    more = f"{100 * gaps.mean():+.1f} ± {100 * half:.1f} points to LoRA of rank 1, 64,000 bits"
    assert first == f"ProPETL LoRA, 70,000 bits: {more}"
    assert "LoRA of rank 4, 256,000 bits" in second
    thin, one, _ = figure.data
    assert [*thin.x] == [64_000, 256_000] and [*thin.y] == pytest.approx([0.11, 0.41])
    assert (one.x[0], one.y[0]) == pytest.approx((70_000, 0.41)) and one.error_y.array[0] > 0


def test_a_lora_of_few_bits_has_them(home):  # noqa: F811
    (row,) = pl.study("few_bits", [0], r=1, steps=2)
    assert row["bits"] == 32 * 4 * 2 * 2 * 128 and 0 < row["score"] < 1
