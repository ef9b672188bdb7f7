"""Files of scores: several evaluations may write into one."""

from ddpm_jax.evaluation import report, results


def test_two_evaluations_may_write_into_one_file(tmp_path):
    books = [results.Results(tmp_path / "scores.json") for _ in range(2)]
    for number, each in enumerate(books):
        each.add([report.Score(f"ddim:{number}", "fd", 1.0, None, (), {})])
    found = report.load(tmp_path / "scores.json")
    assert {score.subject for score in found} == {"ddim:0", "ddim:1"}
