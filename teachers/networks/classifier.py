"""A small classifier of images whose features measure generated samples (Frechet distance, class agreement)."""

from torch import Tensor, nn


class DigitClassifier(nn.Module):
    """Two convolutions, a hidden layer (the features), a linear read-out.

    Args:
        image_size: Height and width of the images, in pixels; even.
        channels: Image channels.
        num_classes: Number of classes.
        width: Channels of the first convolution; the second has twice as many.
        feature_dim: Number of features F.
        dropout: Share of values dropped before and after the hidden layer, while training only.
    """

    def __init__(
        self,
        *,
        image_size: int = 8,
        channels: int = 1,
        num_classes: int = 10,
        width: int = 32,
        feature_dim: int = 48,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.SiLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(2 * width * (image_size // 2) ** 2, feature_dim),
            nn.SiLU(),
        )
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(feature_dim, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Features of images.

        Args:
            x: Images [B, channels, image_size, image_size], scale [-1, 1].

        Returns:
            Features [B, feature_dim], the values that the linear read-out sees.
        """
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the classes.

        Args:
            x: Images [B, channels, image_size, image_size], scale [-1, 1].

        Returns:
            Logits [B, num_classes].
        """
        return self.output(self.dropout(self.features(x)))
