import pytest
import torch

from radtower.labeling.local_llm.calibration import Calibration, calibrate

# present, absent, uncertain, not_mentioned; not normalized on purpose.
REPORT = torch.tensor([0.30, 0.12, 0.08, 0.30]).log()
CONTENT_FREE = torch.tensor([0.30, 0.10, 0.20, 0.60]).log()


def test_published_calibration_divides_by_the_content_free_probabilities():
    # 1.0, 1.2, 0.4 and 0.5, of 3.1.
    expected = torch.tensor([1.0, 1.2, 0.4, 0.5], dtype=torch.float64) / 3.1
    torch.testing.assert_close(calibrate(REPORT, CONTENT_FREE, Calibration.ALL), expected, atol=1e-7, rtol=0)


def test_calibration_of_the_mentioned_leaves_not_mentioned_alone():
    # Divisors: 3 * 0.30 / 0.60 = 1.5, 3 * 0.10 / 0.60 = 0.5, 3 * 0.20 / 0.60 = 1 and 1.
    expected = torch.tensor([0.20, 0.24, 0.08, 0.30], dtype=torch.float64) / 0.82
    result = calibrate(REPORT, CONTENT_FREE, Calibration.MENTIONED)
    torch.testing.assert_close(result, expected, atol=1e-7, rtol=0)


def test_without_calibration_the_probabilities_are_only_normalized():
    expected = torch.tensor([0.30, 0.12, 0.08, 0.30], dtype=torch.float64) / 0.80
    result = calibrate(REPORT, CONTENT_FREE, Calibration.NONE)
    torch.testing.assert_close(result, expected, atol=1e-7, rtol=0)


def test_a_model_without_preference_among_the_mentioned_is_not_changed():
    content_free = torch.tensor([0.01, 0.01, 0.01, 0.97]).log()
    result = calibrate(REPORT, content_free, Calibration.MENTIONED)
    torch.testing.assert_close(result, calibrate(REPORT, content_free, Calibration.NONE))


@pytest.mark.parametrize("calibration", list(Calibration))
def test_a_report_without_content_says_nothing_about_the_mentioned(calibration):
    result = calibrate(CONTENT_FREE, CONTENT_FREE, calibration)
    assert result.sum() == pytest.approx(1)
    if calibration is not Calibration.NONE:
        torch.testing.assert_close(result[:3], result[:1].expand(3))


def test_findings_and_reports_are_calibrated_apart_and_tiny_probabilities_stay_finite():
    reports = torch.tensor([[[-300.0, -301, -302, -303], [0, -1, -2, -3]]])
    content_free = torch.tensor([[-400.0, -401, -399, -3], [-1, -1, -1, -1]])
    result = calibrate(reports, content_free, Calibration.ALL)
    assert result.shape == (1, 2, 4)
    # exp(100), exp(100), exp(97) and exp(-300): halves, but for 0.05 / 2.05.
    expected = torch.tensor([1, 1, torch.e**-3, 0], dtype=torch.float64) / (2 + torch.e**-3)
    torch.testing.assert_close(result[0, 0], expected)
    torch.testing.assert_close(result[0, 1], torch.softmax(reports[0, 1].double(), dim=0))
