"""Rebuilds the digits classifier, teachers/assets/digits/classifier.safetensors, deterministically on the CPU.

A random part of the digits trains the classifier; its accuracy on the rest is printed and stored in the file.

    python benchmarks/train_digits_classifier.py [--output FILE]
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from teachers.networks.classifier import DigitClassifier

ASSETS = Path(__file__).resolve().parents[1] / "teachers" / "assets" / "digits"
ARCHITECTURE = {
    "image_size": 8,
    "channels": 1,
    "num_classes": 10,
    "width": 32,
    "feature_dim": 48,
    "dropout": 0.3,
}


def accuracy(model: DigitClassifier, images: Tensor, labels: Tensor) -> float:
    """Share of images whose most likely class is their label."""
    model.eval()
    with torch.inference_mode():
        return (model(images).argmax(1) == labels).double().mean().item()


def train(images: Tensor, labels: Tensor, *, epochs: int, batch_size: int, lr: float, noise: float) -> DigitClassifier:
    """Trains a classifier with AdamW, cosine decay and Gaussian noise on the images.

    Args:
        images: Training images [n, 1, 8, 8], scale [-1, 1].
        labels: Classes [n].
        epochs: Passes over the images.
        batch_size: Images per step.
        lr: Learning rate at the start; it falls to zero along half a cosine.
        noise: Standard deviation of the noise added to the images, in image units.

    Returns:
        The classifier, in evaluation mode.
    """
    model = DigitClassifier(**ARCHITECTURE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-2)
    steps = epochs * math.ceil(len(images) / batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for part in torch.randperm(len(images)).split(batch_size):
            noisy = images[part] + noise * torch.randn_like(images[part])
            loss = F.cross_entropy(model(noisy), labels[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def main() -> None:
    """Trains, prints the accuracies, writes the weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ASSETS / "classifier.safetensors")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--held-out", type=int, default=360, help="number of digits kept away from training")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--noise", type=float, default=0.15)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    with np.load(ASSETS / "digits.npz") as data:
        images = torch.from_numpy(data["images"]).float()[:, None] / 8 - 1
        labels = torch.from_numpy(data["labels"]).long()
    order = torch.randperm(len(images))
    test, fit = order[: args.held_out], order[args.held_out :]
    options = {"epochs": args.epochs, "batch_size": args.batch_size, "lr": args.lr, "noise": args.noise}
    model = train(images[fit], labels[fit], **options)
    training = {
        **options,
        "seed": args.seed,
        "images": len(fit),
        "held_out_images": len(test),
        "accuracy": round(accuracy(model, images[fit], labels[fit]), 4),
        "held_out_accuracy": round(accuracy(model, images[test], labels[test]), 4),
    }
    print(json.dumps(training))
    header = {"mfd": json.dumps({"architecture": ARCHITECTURE, "training": training})}
    save_file(model.state_dict(), args.output, metadata=header)


if __name__ == "__main__":
    main()
