"""Numbers out of verdicts on single images, counted by hand; what is known later hides nothing."""

import numpy as np
import pytest

from raydist.engine.agent.verdicts import Verdicts, merge, of_ensemble
from raydist.measure.cascade import FEW_CLASSES, STANDARD, Cascade
from raydist.measure.columns import Known, alone, base, columns, joined, over_agents


def verdicts(text, first=0):
    """Image -> whether it is right, from first on; a blank is not known."""
    return {i: letter == "1" for i, letter in enumerate(text, start=first) if letter != " "}


def ensemble(attacks, *broken_by, images=None):
    codes = np.array(broken_by, dtype=np.int8)
    index = np.arange(len(codes)) if images is None else np.array(images)
    return of_ensemble(Cascade(attacks, codes, (0.0,) * len(attacks), frozenset()), index)


def test_each_accuracy_is_of_the_images_that_its_attack_saw():
    found = columns(
        Known(
            {
                "clean": verdicts("1111011111"),
                "pgd10": verdicts("11100111"),
                "pgd20": verdicts("1100"),
                "square5000": verdicts("  11"),
            }
        )
    )
    expected = {"clean": (9 / 10, 10), "pgd10": (6 / 8, 8), "pgd20": (2 / 4, 4)}
    expected["square5000"] = (1.0, 2)
    for name, (accuracy, images) in expected.items():
        assert found[f"{name}_acc"] == pytest.approx(accuracy)
        assert found[f"{name}_images"] == images


def test_the_ensembles_columns_are_what_each_member_left_on_its_images():
    #            images 1, 2, 3, 6, 7
    cascade = ensemble(STANDARD, -1, 2, 1, 4, 3, images=[1, 2, 3, 6, 7])
    right = {"clean": verdicts("11110111"), "pgd10": verdicts("11100111")} | cascade
    found = columns(Known(right))
    left = {"apgd_ce": 4 / 5, "apgd_t": 3 / 5, "fab_t": 2 / 5, "square": 1 / 5, "autoattack": 1 / 5}
    for name, accuracy in left.items():
        assert (found[f"{name}_acc"], found[f"{name}_images"]) == (pytest.approx(accuracy), 5)
    # images 3 is wrong under PGD-10; of the others of the five only image 1 stands
    assert found["overestimation"] == pytest.approx(4 / 5 - 1 / 5)
    assert found["overestimation_images"] == 5
    assert found["clean_acc"] == 7 / 8 and found["clean_images"] == 8
    assert found["autoattack_flags"] == "square-stronger"


def test_an_attack_alone_and_in_the_ensemble_are_two_columns():
    cascade = ensemble(STANDARD, 1, 1, 2, -1, images=[0, 1, 2, 3])
    right = {"clean": verdicts("1" * 8), alone("apgd-t"): verdicts("10011111")} | cascade
    found = columns(Known(right))
    assert (found["apgd_t_acc"], found["apgd_t_images"]) == (1 / 4, 4)
    assert (found["apgd_t_alone_acc"], found["apgd_t_alone_images"]) == (6 / 8, 8)
    assert found["autoattack_acc"] <= found["apgd_t_acc"] <= found["apgd_ce_acc"]


def test_what_the_members_saw_alone_does_not_enlarge_the_ensembles_images():
    cascade = ensemble(STANDARD, -1, 1, images=[0, 1])
    cascade["apgd-ce"] |= verdicts("000", first=2)  # asked for by name, on more images
    found = columns(Known({"clean": verdicts("11110")} | cascade))
    assert (found["autoattack_acc"], found["autoattack_images"]) == (1 / 2, 2)
    assert (found["apgd_ce_acc"], found["apgd_ce_images"]) == (1 / 5, 5)


@pytest.mark.parametrize("attacks", [FEW_CLASSES])
def test_only_the_standard_ensemble_is_called_autoattack(attacks):
    right = {"clean": verdicts("110"), "pgd10": verdicts("110")}
    found = columns(Known(right | ensemble(attacks, -1, 2, 0), members=attacks))
    assert "autoattack_acc" not in found and "few-classes" in found["autoattack_flags"]
    assert found["overestimation"] == pytest.approx(1 / 3)
    assert found["fab_acc"] == pytest.approx(1 / 3)


def masked(images=64, gap=20):
    """PGD-10 leaves 60 of 64 images, AutoAttack 20 fewer; of 360 in all."""
    pgd10 = [i < images - 4 for i in range(images)]
    broken = [1 if not kept else -1 for kept in pgd10]
    broken[:gap] = [2] * gap
    right = {"clean": verdicts("1" * 360), "pgd10": dict(enumerate(pgd10))}
    return right | ensemble(STANDARD, *broken)


def test_more_images_under_pgd_do_not_make_an_overestimation_vanish():
    before = columns(Known(masked()))
    right = masked()
    right["pgd10"] = right["pgd10"] | verdicts("1" * 296, first=64)
    after = columns(Known(right))
    assert after["pgd10_images"] == 360 and after["autoattack_images"] == 64
    for found in (before, after):
        assert found["overestimation"] == pytest.approx(20 / 64)
        assert found["overestimation_images"] == 64
        assert "overestimation" in found["masking"]


def test_a_weaker_attack_on_more_images_does_not_make_it_vanish_either():
    right = masked() | {"square1000": verdicts("1" * 360)}
    right["pgd10"] = verdicts("1" * 360)
    found = columns(Known(right))
    assert (
        found["overestimation"] == pytest.approx(24 / 64) and "overestimation" in found["masking"]
    )


def test_few_images_do_not_take_a_sign_away():
    right = masked() | {"pgd100": verdicts("1" * 8), "apgd-dlr": verdicts("1" * 8)}
    found = columns(Known(right))
    assert "overestimation" in found["masking"] and found["masking_images"] == 64


def test_a_number_of_more_images_in_common_replaces_one_of_fewer():
    """No gap is beyond chance: that of most images stands, whatever attack it is of."""
    right = {"clean": verdicts("1" * 200), "pgd10": verdicts("1" * 200)}
    right |= ensemble(STANDARD, *[-1] * 16)
    for images in (100, 200):
        more = verdicts("0" + "1" * (images - 1))  # one that only this attack breaks
        found = columns(Known(right | {alone("apgd-t"): more}))
        assert found["overestimation_images"] == images
        assert found["overestimation"] == pytest.approx(1 / images)


def test_a_verdict_is_of_the_fewest_images_that_it_rests_on():
    right = {"clean": verdicts("1" * 200), "pgd10": verdicts("1" * 200)}
    right |= {"fgsm": verdicts("1" * 200)} | ensemble(STANDARD, *[-1] * 100)
    found = columns(Known(right))
    assert (found["masking"], found["masking_images"]) == ("trusted", 100)
    found = columns(Known(right, {"zero_gradient": dict.fromkeys(range(30), 1.0)}))
    assert (found["masking"], found["masking_images"]) == ("zero-gradient", 30)


TRUSTED = {"clean_images": 100, "pgd10_acc": 0.5, "pgd10_images": 100, "overestimation": 0.0}
TRUSTED |= {"overestimation_images": 100, "masking": "trusted", "masking_images": 100}
TRUSTED |= {"masking_unchecked": "fosc", "autoattack_images": 100, "autoattack_flags": "partial"}


@pytest.mark.parametrize("prefix", ["", "ema_"])
def test_what_belongs_together_is_replaced_together_or_not_at_all(prefix):
    def named(numbers):
        return {prefix + name: value for name, value in numbers.items()}

    signs = {"clean_images": 100, "pgd10_acc": 0.6, "pgd10_images": 200, "overestimation": 0.4}
    signs |= {"overestimation_images": 64, "masking": "overestimation", "masking_images": 64}
    signs |= {"autoattack_images": 100}
    found = joined(named(TRUSTED), signs, prefix)  # of as many images, and no list beside it
    assert found == named(signs)
    val = {"val_clean_acc": 1.0, "val_clean_images": 8}  # says nothing of the test images
    assert joined(named(TRUSTED | {"val_clean_images": 9}), signs | val, prefix) == named(
        signs | {"val_clean_images": 9}
    )
    less = signs | {"pgd10_images": 8, "masking_images": 300, "masking_unchecked": "zero-gradient"}
    found = joined(named(TRUSTED), less, prefix)  # what it was read from is of fewer
    kept = {name: value for name, value in TRUSTED.items() if name != "autoattack_flags"}
    assert found == named(kept)


def test_numbers_at_another_budget_belong_together_too():
    at = {f"{name}@l2:0.3": value for name, value in TRUSTED.items()}
    new = {"masking@l2:0.3": "unchecked", "pgd10_acc@l2:0.3": 0.4, "pgd10_images@l2:0.3": 100}
    found = joined(at, new)
    assert found["masking@l2:0.3"] == "unchecked" and "masking_unchecked@l2:0.3" not in found
    assert "masking_images@l2:0.3" not in found and found["autoattack_images@l2:0.3"] == 100


def test_an_overestimation_needs_pgd10_and_an_attack_of_another_kind():
    clean = {"clean": verdicts("1111")}
    same_kind = clean | {name: verdicts("1101") for name in ("pgd10", "pgd20", "apgd-ce", "fgsm")}
    assert "overestimation" not in columns(Known(same_kind))
    assert "overestimation" not in columns(Known(clean | ensemble(STANDARD, -1, 1, 2, -1)))
    other = same_kind | {"apgd-dlr": verdicts("1001")}
    assert columns(Known(other))["overestimation"] == pytest.approx(1 / 4)
    wider = clean | {"pgd10": verdicts("1111"), "pgd10-2eps": verdicts("0000")}
    assert "overestimation" not in columns(Known(wider | {"apgd-dlr": verdicts("    ")}))


def test_the_largest_common_images_of_sets_that_are_not_nested():
    right = {"clean": verdicts("1" * 9), "pgd10": verdicts("111111")}
    right["apgd-dlr"] = verdicts("010111", first=3)  # images 3, 4, 5 are seen by both
    found = columns(Known(right))
    assert found["overestimation_images"] == 3
    assert found["overestimation"] == pytest.approx(2 / 3)


def test_a_few_images_of_an_ensemble_trust_nobody():
    right = {"clean": verdicts("1" * 16), "pgd10": verdicts("1" * 16)}
    found = columns(Known(right | ensemble(STANDARD, *[-1] * 16)))
    assert found["masking"] == "unchecked" and "overestimation" in found["masking_unchecked"]
    many = {"clean": verdicts("1" * 100), "pgd10": verdicts("1" * 100)}
    assert columns(Known(many | ensemble(STANDARD, *[-1] * 100)))["masking"] == "trusted"
    logits = Known(many | ensemble(STANDARD, *[-1] * 100), flags=frozenset({"randomised"}))
    assert columns(logits)["masking"] == "randomised"


def test_what_square_left_in_the_ensemble_is_not_square_alone():
    broken = [-1] * 47 + [1] * 50 + [2] * 3
    right = {"clean": verdicts("1" * 100), "pgd10": dict(enumerate(np.arange(100) < 55))}
    for members, codes in ((STANDARD, broken), (FEW_CLASSES, broken)):
        found = columns(Known(right | ensemble(members, *codes), members=members))
        assert found["square_acc"] < found["pgd10_acc"]
        assert found["masking"] == "trusted"
        assert "square-stronger" in found["masking_unchecked"]


def test_values_have_means_and_zero_gradients_are_a_sign():
    right = {"clean": verdicts("1111" * 10)}
    values = {"fosc": {0: 1.0, 1: 3.0}, "zero_gradient": {i: float(i % 2) for i in range(40)}}
    found = columns(Known(right, values))
    assert (found["fosc"], found["fosc_images"]) == (2.0, 2)
    assert found["zero_gradient_share"] == 0.5 and found["masking"] == "zero-gradient"


def test_parts_that_agents_judged_are_put_together():
    right = {"clean": verdicts("11010"), "pgd10": verdicts("10010")}
    right |= ensemble(STANDARD, -1, 3, 0, 1, 0)
    values = {"fosc": {i: float(i) for i in range(5)}}

    def part(images, n):
        def mine(tables):
            return {
                name: {i: v for i, v in of.items() if i in images} for name, of in tables.items()
            }

        return Verdicts(Known(mine(right), mine(values)), n, np.full(2, float(n)))

    whole = merge([part({4, 1}, 3), part({0, 3}, 1), part({2}, 0)])
    assert columns(whole.known) == columns(Known(right, values))
    assert whole.curved == 4 and whole.traces.tolist() == [2.5, 2.5]


def test_agents_are_compared_on_the_images_of_all_of_them():
    first = Known({"clean": verdicts("1100"), "pgd10": verdicts("1000")})
    second = Known({"clean": verdicts("1110"), "pgd10": verdicts("10")})
    found = over_agents([first, second])
    assert found["agents_worst_clean_acc"] == 1 / 2 and found["agents_best_clean_acc"] == 3 / 4
    assert found["agents_mean_clean_acc"] == pytest.approx(5 / 8)
    assert found["agents_mean_clean_images"] == 4
    assert found["agents_mean_pgd10_acc"] == 1 / 2 and found["agents_mean_pgd10_images"] == 2
    assert over_agents([first, Known({})]) == {}


def test_what_belongs_to_a_number_has_its_name():
    names = ("pgd10_acc", "pgd10_images", "hessian_trace_error", "masking_unchecked", "fosc")
    assert [base(name) for name in names] == ["pgd10", "pgd10", "hessian_trace", "masking", "fosc"]
