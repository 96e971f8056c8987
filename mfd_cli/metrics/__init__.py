"""How good samples are: one contract (`contract.Metric`), one registry, one file for each family of measures.

contract.py      what a metric is, and what it is given
uncertainty.py   figures with their standard errors; differences of models judged on the same noise and conditions
frechet.py  sliced.py  mmd.py  neighbours.py    distances between sets of samples or of their features
shares.py        shares of samples: the class asked for, the modes of a known mixture
features.py  inception.py   networks that images are seen with
pictures.py  fid.py  kid.py   distances between sets of images in their features: FID, FD-DINOv2, KID, CMMD
clip.py  aesthetic.py  hpsv2.py  image_reward.py   scores of single images, most of them against their prompts
images.py  weights.py  convert.py               pixels in, weights in

docs/metrics.md defines every figure.
"""
