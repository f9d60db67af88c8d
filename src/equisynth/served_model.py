"""The registered model as MLflow's pyfunc, stored as this file (models from code): nothing is pickled.

All that it does lies in the installed program, so that registered models gain what the program learns.
"""

from __future__ import annotations

import mlflow

from equisynth.service import Translator

mlflow.models.set_model(Translator())
