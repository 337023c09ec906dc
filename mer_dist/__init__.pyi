from mer_dist.api.fusion_classifier import FusionClassifier as FusionClassifier
from mer_dist.api.results import Result as Result
from mer_dist.api.results import Run as Run
from mer_dist.api.stages import extract as extract
from mer_dist.api.stages import finetune as finetune
from mer_dist.api.stages import fuse as fuse
from mer_dist.api.stages import load as load
from mer_dist.api.stages import shard as shard
from mer_dist.core.errors import UserError as UserError
from mer_dist.predict.predictor import Prediction as Prediction
from mer_dist.predict.predictor import Predictor as Predictor

__version__: str
