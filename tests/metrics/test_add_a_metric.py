"""The metric that docs/metrics.md writes: as a plugin, in a table."""

import re
from pathlib import Path

import pytest
import torch

from mfd_cli.config.schema import Evaluate
from mfd_cli.errors import MfdError
from mfd_cli.inference.quality import Reference
from mfd_cli.metrics.registry import metrics
from mfd_cli.plugins import import_plugin
from teachers.gmm import GaussianMixtureData, GaussianMixtureSettings, GaussianMixtureTeacher
from teachers.settings import Settings

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def test_the_pages_metric_measures(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "_registered", {})
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S)
    plugin = tmp_path / "brightness.py"
    plugin.write_text(code)
    import_plugin(plugin)
    listed = Evaluate.model_validate({"metrics": [{"type": "brightness", "scale": 2.0}]}).metrics
    data = GaussianMixtureData.load(
        Settings(type="gmm"), GaussianMixtureTeacher.load(GaussianMixtureSettings(type="gmm"))
    )
    samples = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    found = Reference(data, 50, 0, listed).score(samples)["brightness"]
    assert found.value == pytest.approx(2 * samples.mean().item(), rel=1e-5)
    assert found.standard_error == pytest.approx((2 * samples.mean(1)).std().item() / 50**0.5, rel=1e-5)
    assert metrics.origin("brightness") == "plugin"


def test_every_metric_has_a_row_on_the_page():
    text = PAGE.read_text("utf-8")
    assert [name for name in metrics.names() if f"| `{name}`" not in text] == []


def test_a_built_in_name_cannot_be_taken():
    with pytest.raises(MfdError, match="built in"):
        metrics.register("fid")(type("Other", (), {}))
