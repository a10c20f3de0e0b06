"""Simulates what promotions claim (docs/concepts/promotion.md), beside other tests.

`python -m benchmarks.promotion` runs every part; `--quick` with fewer repetitions, `--part NAME` one of them. A
question is one labelled decision. In the tests all alternatives may err with 2.5 % on each side, after every episode.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
from scipy import stats
from scipy.special import betaln

from quality.evaluation.drift import Row, find_drift
from quality.evaluation.error_budget import allow
from quality.evaluation.intervals import jackknife, leave_out
from quality.evaluation.live import QUALITY_SHARE, LivePolicy, Stream, fall_evidence, harm_evidence
from quality.evaluation.sequential import ANY_DIFFERENCE, Scores, limit_outliers

Array = np.ndarray
ALPHA = 0.025
NEVER = 10**9
START = datetime(2026, 1, 1, tzinfo=UTC)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a fifth of the repetitions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", choices=PARTS, help="only this part")
    options = parser.parse_args()
    repetitions = 200 if options.quick else 1000
    for name, part in PARTS.items():
        if options.part in (None, name):
            print(f"\n## {name}")
            part(np.random.default_rng(options.seed), repetitions)


# -- worlds ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """How often model and fallback are right, rows an episode, how alike these are, and the model's share of episodes.

    `share` None: both answer every question; `common` is the share of episodes whose questions are as hard for both.
    """

    model: float
    fallback: float
    rows: int = 1
    alike: float = 0.2
    share: float | None = None
    common: float = 0.0

    def __str__(self) -> str:
        design = "paired" if self.share is None else f"by arm {self.share:.0%}"
        return f"{self.model:.2f} / {self.fallback:.2f}, episodes of {self.rows}, {design}"


def right_shares(rng: np.random.Generator, shape: tuple[int, int], world: World) -> tuple[Array, Array]:
    """Per episode the shares of right answers of both: beta-binomial with the intraclass correlation `alike`."""
    if world.rows == 1 or world.alike == 0:
        chances = [np.full(shape, world.model), np.full(shape, world.fallback)]
    else:
        size = 1 / world.alike - 1
        chances = [rng.beta(right * size, (1 - right) * size, shape) for right in (world.model, world.fallback)]
    hard = rng.random((2, *shape, world.rows), dtype=np.float32)
    hard[1] = np.where(rng.random(shape)[..., None] < world.common, hard[0], hard[1])
    ours, theirs = ((each < chance[..., None]).mean(axis=2) for each, chance in zip(hard, chances, strict=True))
    return ours, theirs


@dataclass(frozen=True)
class Sample:
    """Scores of episodes (repetitions x episodes), their limits, and the right shares by arm (NaN: not drawn)."""

    scores: Array
    low: Array
    high: Array
    ours: Array
    theirs: Array


def draw(rng: np.random.Generator, world: World, repetitions: int, episodes: int) -> Sample:
    shape = (repetitions, episodes)
    ours, theirs = right_shares(rng, shape, world)
    if world.share is None:
        scores, limit = limit_outliers(ours - theirs, np.ones(shape), np.full(shape, world.rows))
        return Sample(scores, -limit, limit, ours, theirs)
    share = world.share
    drawn = rng.random(shape) < share
    seen = np.where(drawn, ours, theirs)
    before = np.concatenate([np.zeros((repetitions, 1)), np.cumsum(seen, 1)[:, :-1]], 1)
    centre = before / np.maximum(np.arange(episodes), 1)
    scores = np.where(drawn, 1 / share, -1 / (1 - share)) * (seen - centre)
    low = np.minimum(-centre / share, (centre - 1) / (1 - share))
    high = np.maximum((1 - centre) / share, centre / (1 - share))
    return Sample(scores, low, high, np.where(drawn, ours, np.nan), np.where(drawn, np.nan, theirs))


# -- tests: each gives, per repetition, the first episode after which it says "better" --------------------------------


def first(stopped: Array) -> Array:
    return np.where(stopped.any(axis=1), stopped.argmax(axis=1) + 1, NEVER)


def bets(sample: Sample, null: float = 0.0) -> Array:
    """Ours: `quality.evaluation.sequential.log_wealth`, for many repetitions at once."""
    gain = (sample.scores - null) / (null - sample.low)
    total = np.full(sample.scores.shape, -np.inf)
    for stake, share in zip(ANY_DIFFERENCE.fractions, ANY_DIFFERENCE.log_shares[:, 0], strict=True):
        total = np.logaddexp(total, np.cumsum(np.log1p(stake * gain), axis=1) + share)
    return first(total >= -math.log(ALPHA))


def empirical_bernstein(sample: Sample) -> Array:
    """What was here before: predictable plug-in empirical Bernstein (Waudby-Smith and Ramdas 2024, Theorem 2)."""
    bound = np.abs(sample.low).max()
    x = (sample.scores + bound) / (2 * bound)
    t = np.arange(1, x.shape[1] + 1)
    mean = (0.5 + np.cumsum(x, 1)) / (t + 1)
    variance = (0.25 + np.cumsum((x - mean) ** 2, 1)) / (t + 1)
    before, spread = np.roll(mean, 1, axis=1), np.roll(variance, 1, axis=1)
    before[:, 0], spread[:, 0] = 0.5, 0.25
    bet = np.minimum(np.sqrt(2 * np.log(1 / ALPHA) / (spread * t * np.log1p(t))), 0.5)
    total = np.cumsum(bet, 1)
    cost = 4 * (x - before) ** 2 * (-np.log1p(-bet) - bet) / 4
    return first((np.cumsum(bet * x, 1) - math.log(1 / ALPHA) - np.cumsum(cost, 1)) / total > 0.5)


def _moments(scores: Array) -> tuple[Array, Array, Array]:
    t = np.arange(1, scores.shape[1] + 1)
    mean = np.cumsum(scores, 1) / t
    return t, mean, np.maximum(np.cumsum(scores**2, 1) / t - mean**2, 1e-6)


def msprt(sample: Sample) -> Array:
    """Mixture sequential probability ratio test with a plug-in variance (Johari et al., 2022); tau is 0.05."""
    t, mean, variance = _moments(sample.scores)
    tau = 0.05**2
    ratio = 0.5 * np.log(variance / (variance + t * tau)) + t**2 * tau * mean**2 / (2 * variance * (variance + t * tau))
    return first((ratio > -math.log(2 * ALPHA)) & (mean > 0) & (t >= 10))


def asymptotic(sample: Sample) -> Array:
    """GAVI: asymptotic confidence sequence (Waudby-Smith et al., 2021), tuned to 300 episodes, from 10 episodes on."""
    t, mean, variance = _moments(sample.scores)
    alpha = 2 * ALPHA
    rho = (-2 * math.log(alpha) + math.log(-2 * math.log(alpha) + 1)) / 300
    radius = np.sqrt(variance * 2 * (t * rho + 1) / (t**2 * rho) * np.log(np.sqrt(t * rho + 1) / alpha))
    return first((mean - radius > 0) & (t >= 10))


def mcnemar(sample: Sample) -> Array:
    """Always-valid McNemar on the signs of episodes (beta-binomial mixture). Only of paired scores."""
    wins, losses = np.cumsum(sample.scores > 0, 1), np.cumsum(sample.scores < 0, 1)
    evidence = betaln(wins + 1, losses + 1) + (wins + losses) * math.log(2)
    return first((evidence > -math.log(2 * ALPHA)) & (wins > losses))


def tensorzero(sample: Sample) -> Array:
    """TensorZero's rule: asymptotic confidence sequences of both arms, until they are apart."""

    def bounds(seen: Array) -> tuple[Array, Array]:
        known = ~np.isnan(seen)
        count = np.maximum(np.cumsum(known, 1), 1)
        mean = np.cumsum(np.where(known, seen, 0), 1) / count
        variance = np.maximum(np.cumsum(np.where(known, seen**2, 0), 1) / count - mean**2, 1e-6)
        rho = (-2 * math.log(0.05) + math.log(-2 * math.log(0.05) + 1)) / 300
        radius = np.sqrt(variance * 2 * (count * rho + 1) / (count**2 * rho) * np.log(np.sqrt(count * rho + 1) / 0.05))
        return mean, np.where(count >= 10, radius, np.inf)

    (ours, a), (theirs, b) = bounds(sample.ours), bounds(sample.theirs)
    return first(ours - a > theirs + b)


PAIRED: Mapping[str, Callable[[Sample], Array]] = {
    "bets (ours)": bets,
    "empirical Bernstein (before)": empirical_bernstein,
    "mSPRT": msprt,
    "GAVI, asymptotic": asymptotic,
    "McNemar on signs": mcnemar,
}
BY_ARM = {name: PAIRED[name] for name in ("bets (ours)", "empirical Bernstein (before)", "mSPRT", "GAVI, asymptotic")}


# -- parts ----------------------------------------------------------------------------------------------------------


def compare_tests(rng: np.random.Generator, repetitions: int) -> None:
    """False alarms (A/A) after every episode, and questions until a better model is seen."""
    print(f"{'world':<46}{'test':<32}{'A/A':>7}{'questions, median':>19}{'not in time':>13}")
    for better, worse in ((0.9, 0.8), (0.97, 0.95)):
        for rows, alike in ((1, 0.0), (10, 0.0), (10, 0.2)):
            for share in (None, 0.5, 0.9):
                world = World(better, worse, rows, alike, share)
                episodes = 3000 if rows == 1 else 1000
                same = draw(rng, World(worse, worse, rows, alike, share), repetitions, episodes)
                other = draw(rng, world, repetitions // 2, 4 * episodes)
                tests = dict(PAIRED if share is None else BY_ARM)
                if share is not None:
                    tests["TensorZero's rule, by episode"] = tensorzero
                for name, test in tests.items():
                    wrong = float((test(same) < NEVER).mean())
                    at = test(other)
                    median = float(np.median(at))
                    said = f"{median * rows:,.0f}" if median < NEVER else "-"
                    label = f"{world} ({alike:g} alike)" if rows > 1 else str(world)
                    print(f"{label:<56}{name:<32}{wrong:>7.3f}{said:>12}{float((at == NEVER).mean()):>10.2f}")


def single_rows(rng: np.random.Generator, repetitions: int) -> None:
    """A test that takes rows for independent, on episodes of ten: how often it calls equals different (one side)."""
    for alike in (0.0, 0.2, 0.5):
        shape = (repetitions, 300)
        size = 1 / max(alike, 1e-9) - 1
        sides = []
        for _ in range(2):
            chance = rng.beta(0.8 * size, 0.2 * size, shape) if alike else np.full(shape, 0.8)
            rows = (rng.random((*shape, 10)) < chance[..., None]).astype(float)
            sides.append(rows.reshape(repetitions, -1))
        drawn = np.repeat(rng.random(shape) < 0.5, 10, axis=1)
        none = np.empty(0)
        sample = Sample(none, none, none, np.where(drawn, sides[0], np.nan), np.where(drawn, np.nan, sides[1]))
        print(f"TensorZero's rule on rows, {alike:g} alike: A/A {float((tensorzero(sample) < NEVER).mean()):.3f}")


def months(rng: np.random.Generator, repetitions: int) -> None:
    """Thirty cycles a month on holdouts of 86 episodes: months in which a worthless candidate is promoted."""
    schedules = {"2.5 % each (before)": [ALPHA] * 30, "budget (ours)": budgets(30)}
    sd, episodes, margin = 0.26, 86, 0.02
    for name, difference, cheaper in (
        ("equal", 0.0, False),
        ("worse by the margin, cheaper", -margin, True),
        ("equal, cheaper: worth it", 0.0, True),
        ("better by 7 points: worth it", 0.07, False),
    ):
        for schedule, alphas in schedules.items():
            values = difference + sd * rng.standard_normal((repetitions, 30, episodes)).astype(np.float32)
            mean, se = values.mean(axis=2), values.std(axis=2, ddof=1) / math.sqrt(episodes)
            low = mean - stats.t.ppf(1 - np.array(alphas), episodes - 1) * se
            promoted = low > (-margin if cheaper else 0.0)
            print(
                f"{name:<34}{schedule:<24}months with one {promoted.any(axis=1).mean():6.3f}   "
                f"by the first cycle {promoted[:, 0].mean():.3f}, "
                f"by the fourth {promoted[:, :4].any(axis=1).mean():.3f}"
            )


def budgets(cycles: int) -> list[float]:
    """What `error_budget.allow` gives to one evaluation a day, on fresh holdouts."""
    contents: list[dict[str, object]] = []
    alphas = []
    for day in range(cycles):
        now = START + timedelta(days=day)
        about = {"model_id": str(day), "dataset_id": str(day)}
        alphas.append(allow(contents, about=about, primary="accuracy", now=now).alpha)
        verdict = {"decision": "keep", "why": "", "alpha": alphas[-1]}
        contents.append({"created_at": now.isoformat(), "primary": "accuracy", "about": about | {"verdict": verdict}})
    return alphas


def small_losses(rng: np.random.Generator, repetitions: int) -> None:
    """Thirty cheaper candidates, each worse than the one before by 0.6 points: how much is lost in the end."""
    sd, episodes, margin, cycles = 0.1, 400, 0.02, 30
    alphas = budgets(cycles)
    for name, adds_up in (("each against the last (before)", False), ("with the losses before (ours)", True)):
        lost = np.zeros(repetitions)
        summed, variance = np.zeros(repetitions), np.zeros(repetitions)
        for alpha in alphas:
            seen = -0.006 + sd / math.sqrt(episodes) * rng.standard_normal(repetitions)
            se = sd / math.sqrt(episodes)
            reach = stats.t.ppf(1 - (alpha if adds_up else ALPHA), episodes - 1)
            promoted = seen - reach * se > -margin
            if adds_up:
                promoted &= summed + seen - reach * np.sqrt(variance + se**2) > -margin
            lost += 0.006 * promoted
            summed, variance = summed + seen * promoted, variance + se**2 * promoted
        print(f"{name:<34}lost in a month: mean {lost.mean():.3f}, worst twentieth {np.quantile(lost, 0.95):.3f}")


def coverage(rng: np.random.Generator, repetitions: int) -> None:
    """How often 95 % intervals of an accuracy's difference cover it, with episodes of unequal size."""
    for tail in (0.6, 1.2):
        for episodes in (10, 20, 30, 50, 86):
            weights = leave_out(episodes)
            hits = {"jackknife t (ours)": 0, "percentile bootstrap (before)": 0}
            for _ in range(2 * repetitions):
                rows = np.maximum(rng.lognormal(1.5, tail, episodes).astype(int), 1)
                ours = rng.binomial(rows, rng.beta(0.85 * 4, 0.15 * 4, episodes))
                theirs = rng.binomial(rows, rng.beta(0.75 * 4, 0.25 * 4, episodes))
                difference = (ours - theirs).astype(float)
                found = jackknife((weights @ difference) / (weights @ rows), unit=1 / rows.mean())
                assert found is not None
                hits["jackknife t (ours)"] += found.low <= 0.1 <= found.high
                drawn = rng.multinomial(episodes, np.full(episodes, 1 / episodes), size=400)
                low, high = np.percentile((drawn @ difference) / (drawn @ rows), [2.5, 97.5])
                hits["percentile bootstrap (before)"] += low <= 0.1 <= high
            said = ", ".join(f"{name} {count / 2 / repetitions:.3f}" for name, count in hits.items())
            print(f"{episodes} episodes, size's spread {tail}: {said}")


def withdrawal(rng: np.random.Generator, repetitions: int) -> None:
    """Labelled decisions until a model that lost 10 points is withdrawn, and false withdrawals of one at the bound.

    `from the start` it is 10 points worse than the fallback (.80 against .90); `after 15 days` it was 2 points better
    before. A month has 1,800 labelled decisions.
    """
    repetitions = max(repetitions // 2, 100)
    print(f"{'world':<76}{'margin':>7}{'false, a month':>16}{'from the start':>16}{'after 15 days':>15}")
    for rows, alike in ((1, 0.0), (10, 0.0), (10, 0.2)):
        for share, common in ((None, 0.0), (None, 0.5), (0.5, 0.0), (0.9, 0.0)):
            for margin in (0.0, 0.02):
                month = 1800 // rows
                worlds = [World(right, 0.9, rows, alike, share, common) for right in (0.9 - margin, 0.8, 0.92)]
                equal, bad, good = worlds
                false = withdrawn(draw(rng, equal, repetitions, month), margin)
                early = withdrawn(draw(rng, bad, repetitions, 2 * month), margin)
                late = withdrawn(
                    joined(draw(rng, good, repetitions, month // 2), draw(rng, bad, repetitions, 2 * month)), margin
                )
                late = np.where(late < NEVER, np.maximum(late - month // 2, 0), NEVER)
                medians = [f"{np.median(at) * rows:,.0f}" if np.median(at) < NEVER else "-" for at in (early, late)]
                label = f"{bad}, {alike:g} alike, {common:g} as hard for both"
                print(f"{label:<76}{margin:>7g}{float((false < NEVER).mean()):>16.3f}{medians[0]:>16}{medians[1]:>15}")


def own_record(rng: np.random.Generator, repetitions: int) -> None:
    """Labelled decisions until a model that falls from its own record is shrunk to the canary's share, 60 a day.

    It serves 15 days before it falls. `steady` never does, and every alarm of its 30 days is a false one.
    """
    repetitions, bar = max(repetitions // 4, 100), -math.log(LivePolicy().shrink_alpha)

    def shrunk(right: Array) -> Array:
        values = (rng.random((repetitions, len(right))) < right).astype(float)
        known_at = START.timestamp() + 86_400 / 60 * np.arange(1, len(right) + 1)
        streams = (Stream(Scores.within(each, 0.0, 1.0), known_at) for each in values)
        return first(np.array([fall_evidence(stream, START.timestamp()) >= bar for stream in streams]))

    print(f"{'right before':<14}{'after':>7}{'false, a month':>16}{'median':>9}{'not in time':>13}")
    for before in (0.9, 0.8):
        false = float((shrunk(np.full(1800, before)) < NEVER).mean())
        for lost in (0.1, 0.2, 0.3):
            at = shrunk(np.r_[np.full(900, before), np.full(900, before - lost)]) - 900
            median = f"{np.median(at):,.0f}" if np.median(at) < 900 else "-"
            missed = float((at > 900).mean())
            print(f"{before:<14g}{before - lost:>7.2g}{false:>16.3f}{median:>9}{missed:>13.2f}")


def drift(rng: np.random.Generator, repetitions: int) -> None:
    """False alarms of drift in 30 days, asked daily, and labelled decisions until a shift of a label's share shows.

    Episodes of three rows, 20 a day, alike by .2; the dataset's last splits have 100 episodes.
    """
    repetitions = max(repetitions // 10, 20)

    def drawn(episodes: int, share: float, begin: float) -> list[Row]:
        chances = rng.beta(share * 4, (1 - share) * 4, episodes)
        return [
            Row(f"{begin}-{n}", begin + n * 4_320, "RESPOND" if rng.random() < chance else "IGNORE", 100, "robin")
            for n, chance in enumerate(chances)
            for _ in range(3)
        ]

    def seen_after(share: float) -> Array:
        found = []
        for _ in range(repetitions):
            reference = drawn(100, 0.3, START.timestamp() - 10 * 86_400)
            rows = drawn(600, share, START.timestamp())
            days = (
                day
                for day in range(1, 31)
                if find_drift(reference, rows[: day * 60], now=START + timedelta(days=day)) is not None
            )
            found.append(next(days, NEVER // 60) * 60)
        return np.array(found)

    print(f"the same: false alarms in a month {(seen_after(0.3) < 10_000).mean():.3f}")
    for share in (0.4, 0.5, 0.6):
        at = seen_after(share)
        median = f"{np.median(at):,.0f}" if np.median(at) < 10_000 else "-"
        print(f"from .3 to {share:g}: median {median}, not in a month {(at > 10_000).mean():.2f}")


def fewest(_: np.random.Generator, __: int) -> None:
    """Questions that no valid test can do without on average: the bar over the growth of the best stake (Wald)."""
    bar = -math.log(LivePolicy().withdraw_alpha * QUALITY_SHARE)
    for common in (0.0, 0.5):
        # Paired: how often only the fallback is right, and only the model, at 0.80 against 0.90.
        worse = (1 - common) * 0.2 * 0.9 + common * 0.1
        better = (1 - common) * 0.8 * 0.1
        stake = (worse - better) / (worse + better)
        growth = worse * math.log1p(stake) + better * math.log1p(-stake) if stake < 1 else worse * math.log(2)
        print(f"paired, {common:g} as hard for both: {bar / growth:,.0f}")
    for share in (0.5, 0.9):
        same = (0.8 * share + 0.9 * (1 - share)) if share else 0.0
        kl = [p * math.log(p / same) + (1 - p) * math.log((1 - p) / (1 - same)) for p in (0.8, 0.9)]
        print(f"by arm, {share:.0%}: {bar / (share * kl[0] + (1 - share) * kl[1]):,.0f}")


def joined(one: Sample, other: Sample) -> Sample:
    return Sample(
        *(
            np.concatenate([getattr(one, name), getattr(other, name)], axis=1)
            for name in ("scores", "low", "high", "ours", "theirs")
        )
    )


def withdrawn(sample: Sample, margin: float) -> Array:
    """The first episode after which `decide` withdraws for quality; 60 a day of one row."""
    begin, episodes = START.timestamp(), sample.scores.shape[1]
    known_at = begin + 86_400 * 30 * np.arange(1, episodes + 1) / max(episodes, 1)
    bar = -math.log(LivePolicy().withdraw_alpha * QUALITY_SHARE)
    found = []
    for values, low, high in zip(sample.scores, sample.low, sample.high, strict=True):
        scores = Scores(values, low, high, np.ones(episodes)).negated()
        found.append(harm_evidence(Stream(scores, known_at), begin, margin) >= bar)
    return first(np.array(found))


def labels(rng: np.random.Generator, repetitions: int) -> None:
    """Labels that come late or never: A/A of bets on paired episodes of one row, and of arms of 50 %."""
    for share in (None, 0.5):
        sample = draw(rng, World(0.8, 0.8, share=share), repetitions, 2000)
        wrong = np.where(np.isnan(sample.ours), sample.theirs, sample.ours) == 0
        for name, chance in (
            ("all", np.ones(wrong.shape)),
            ("half, at random", np.full(wrong.shape, 0.5)),
            ("half of the right, all of the wrong answers of the arm served", np.where(wrong, 1.0, 0.5)),
        ):
            known = rng.random(wrong.shape) < chance
            late = np.arange(2000) + rng.exponential(200, wrong.shape)
            order = np.argsort(np.where(known, late, np.inf), axis=1)
            values = np.take_along_axis(np.where(known, sample.scores, 0.0), order, axis=1)
            low = np.take_along_axis(sample.low, order, axis=1)
            alarms = float((bets(Sample(values, low, -low, values, values)) < NEVER).mean())
            high = np.take_along_axis(sample.high, order, axis=1)
            worse = Sample(-values, -high, -low, values, values)
            print(
                f"{'paired' if share is None else 'by arm 50%':<12}labels of {name:<64}"
                f"better {alarms:.3f}, worse {float((bets(worse) < NEVER).mean()):.3f}"
            )


PARTS: Mapping[str, Callable[[np.random.Generator, int], None]] = {
    "tests": compare_tests,
    "rows": single_rows,
    "months": months,
    "losses": small_losses,
    "coverage": coverage,
    "withdrawal": withdrawal,
    "fewest": fewest,
    "drift": drift,
    "own record": own_record,
    "labels": labels,
}


if __name__ == "__main__":
    main()
