"""What goes around any algorithm: ``AdamW(model, modifiers=[Cautious(), EMA(0.999)])``; ``docs/modifiers.md``."""

from steprule.rule.modifier import Modifier

from .adaptive_clip import AdaptiveClip
from .cautious import Cautious
from .cautious_decay import CautiousDecay
from .centralize import Centralize
from .clip_step import ClipStep
from .ema import EMA
from .grams import Grams
from .grokfast import Grokfast
from .independent_decay import IndependentDecay
from .lookahead import Lookahead
from .mars import Mars
from .match_rms import MatchRMS
from .ortho_grad import OrthoGrad
from .sam import ASAM, SAM
from .schedule_free import ScheduleFree
from .trust import Trust

__all__ = [
    "ASAM",
    "EMA",
    "SAM",
    "AdaptiveClip",
    "Cautious",
    "CautiousDecay",
    "Centralize",
    "ClipStep",
    "Grams",
    "Grokfast",
    "IndependentDecay",
    "Lookahead",
    "Mars",
    "MatchRMS",
    "Modifier",
    "OrthoGrad",
    "ScheduleFree",
    "Trust",
]
