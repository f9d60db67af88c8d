"""The registered model as MLflow's pyfunc, stored as this file (models from code): nothing is pickled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.pyfunc import PythonModel


class Translator(PythonModel):  # type: ignore[misc]
    """Translates one whole prepared image."""

    _skip_type_hint_validation = True  # arrays are checked by the signature; MLflow would warn at every import

    def load_context(self, context: Any) -> None:
        """Loads weights and description from the artifacts."""
        from equisynth.model import load_model

        self.model = load_model(Path(context.artifacts["weights"]).parent)

    def predict(self, context: Any, model_input, params: dict[str, Any] | None = None):  # type: ignore[no-untyped-def]
        """Synthesises the other modality. (MLflow would take annotations of input and output for a schema of its own.)

        Args:
            model_input: prepared image, (*S) or (*S, C) float32 in the input's unit (not divided by its std).

        Returns:
            (*S) or (*S, C') in the label's unit.

        Raises:
            UserError: another number of axes or channels, or values that are not finite.
        """
        from equisynth.errors import UserError
        from equisynth.inference import translate_volume

        data = self.model.description.settings.data
        values = np.asarray(model_input, dtype=np.float32)
        expected = data.n_dims + (data.input.channels > 1)
        if values.ndim != expected or (expected > data.n_dims and values.shape[-1] != data.input.channels):
            channels = f" and {data.input.channels} channels at the end" if expected > data.n_dims else ""
            raise UserError(f"the image has shape {values.shape}, expected {data.n_dims} axes{channels}")
        if not np.isfinite(values).all():
            raise UserError("the image holds NaN or infinity; replace them by the background")
        return translate_volume(self.model.predict, values, None, self.model.description)


mlflow.models.set_model(Translator())
