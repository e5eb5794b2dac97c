"""The `score` source: the quality word of the human score in a sentence, and nothing about the picture.

It is what written descriptions are compared with: whatever these add to the human score, this source lacks.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

from PIL import Image

from .describer import Description, DescriptionError
from .sentences import NOUNS, VERDICTS, quality_words


class ScoreDescriber:
    """Says the quality word of ITU-R BT.500 that the human score stands for.

    Example:
        >>> ScoreDescriber().describe(Path("a.png"), score=0.5, seed=1).text
        'The impression that the image makes is fair.'
    """

    source = "score"

    def describe(
        self,
        image: Path | Image.Image,
        *,
        score: float | None = None,
        distortion: str | None = None,  # noqa: ARG002  the score is all that is told
        level: int = 0,  # noqa: ARG002
        seed: int = 0,
    ) -> Description:
        """See `Describer.describe`.

        Raises:
            DescriptionError: No score was given.
        """
        if score is None:
            raise DescriptionError(f"there is no score of {image} to tell")
        random = Random(f"{seed}|{score}|{image if isinstance(image, Path) else ''}")
        text = random.choice(VERDICTS).format(noun=random.choice(NOUNS), quality=quality_words(score))
        return Description(text, score)
