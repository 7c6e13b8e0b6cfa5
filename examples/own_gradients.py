"""Gradients of your own code: a plain PyTorch classifier, torch.func, a store, and estimates beside real trainings.

python examples/own_gradients.py OUT_DIR     # scikit-learn's handwritten digits; OUT_DIR must be new
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from hf_tasksel import GradientStore, SubsetEstimator, forward_selection

STEPS, LEARNING_RATE = 200, 0.5  # of every training that is estimated
DIM = 200  # numbers that a gradient is projected to; inner products stay about what they were

torch.manual_seed(0)
pixels, digits = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
x, y = pixels.float() / 16, digits
tasks = {
    "as_they_are": (x[:300], y[:300]),
    "mirrored": (x[300:600].view(-1, 8, 8).flip(2).flatten(1), y[300:600]),
    "off_by_one": (x[600:900], (y[600:900] + 1) % 10),
    "random_labels": (x[900:1200], torch.randint(10, (300,))),
}
target = {"digits": (x[1200:], y[1200:])}
net = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))


def loss(weights: dict[str, Tensor], images: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(functional_call(net, weights, images), labels)


def train(names: list[str], steps: int = STEPS) -> dict[str, Tensor]:
    rows = [torch.cat(columns) for columns in zip(*(tasks[name] for name in names), strict=True)]
    weights = {name: weight.detach() for name, weight in net.named_parameters()}  # all start from the same ones
    for _ in range(steps):
        weights = {k: weights[k] - LEARNING_RATE * slope for k, slope in grad(loss)(weights, *rows).items()}
    return weights


weights = train(list(tasks), STEPS // 10)  # gradients are taken early in a training on everything
batch = [torch.cat(columns) for columns in zip(*tasks.values(), *target.values(), strict=True)]
losses, slopes = (vmap(f, (None, 0, 0))(weights, *batch) for f in (loss, grad(loss)))  # of each sample alone
gradients = torch.cat([slope.flatten(1) for slope in slopes.values()], dim=1)
names = [name for name, (_, labels) in (tasks | target).items() for _ in labels]
splits = ["dev" if name in target else "train" for name in names]  # estimates are about the dev rows
projected = gradients @ torch.randn(gradients.shape[1], DIM) / DIM**0.5
sizes = [1] * len(names)  # one answer each; of a text, its answer tokens: `loss` is the mean over them
value = -torch.expm1(losses).log()  # log-odds of the right answer, which the default estimates do without
columns = {"task": names, "split": splits, "value": value, "loss": losses, "num_tokens": sizes}
store = GradientStore.from_arrays(sys.argv[1], **columns, loss_gradient=projected)
estimator = SubsetEstimator().fit(store, target="digits")
print(f"selected: {forward_selection(estimator).selected}\nestimated  trained")
for subset in [*([name] for name in tasks), ["as_they_are", "mirrored"], list(tasks)]:
    print(f"{estimator.predict([subset])[0]:9.3f}{loss(train(subset), *target['digits']):9.3f}  {' + '.join(subset)}")
