#!/usr/bin/env bash
# scikit-learn 1.9.1, Python 3.11.
#
# Expected: LogisticRegression's C is the inverse of the regularisation, and a fit that ends without a ConvergenceWarning
# is near the optimum for its C. So a sweep of C, as linear probes of CLIP features are compared with (Radford et al.
# sweep 1e-6 to 1e6), shows how accuracy depends on it.
# Seen: on features of unit length, few of them and separable as few-shot sets are, the default tol=1e-4 ends the default
# solver after some ten steps whatever C is, without a warning: the loss that it looks at is divided by C times the
# number of images, and so is its gradient. From C = 1e3 on weights hardly change with C, and the regularised loss is up
# to a hundred times that of the optimum, which tol=1e-8 reaches in forty steps. What looks like the flat end of a sweep
# is an early stop: the converged probe's weights go on growing, and its test accuracy may be another.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check scikit-learn==1.9.1

venv/bin/python - << 'EOF'
import warnings

import numpy as np
from sklearn.linear_model import LogisticRegression

warnings.simplefilter("error")  # a ConvergenceWarning would end this
draw = np.random.default_rng(0)
labels = np.repeat(np.arange(5), 16)
features = draw.normal(size=(5, 128))[labels] + 1.5 * draw.normal(size=(80, 128))
features /= np.linalg.norm(features, axis=1, keepdims=True)
found = {}
for strength in (1.0, 1e2, 1e4, 1e6):
    for tolerance in (1e-4, 1e-8):
        model = LogisticRegression(C=strength, tol=tolerance, max_iter=10_000).fit(features, labels)
        losses = -model.predict_log_proba(features)[np.arange(80), labels]
        whole = strength * losses.sum() + (model.coef_**2).sum() / 2
        norm = np.linalg.norm(model.coef_)
        found[strength, tolerance] = norm, whole
        print(f"C {strength:g}, tol {tolerance:g}: {model.n_iter_[0]} steps, |weights| {norm:.1f}, loss {whole:.4g}")
assert np.isclose(found[1e4, 1e-4][0], found[1e6, 1e-4][0], rtol=0.02)  # C no longer counts
assert found[1e6, 1e-8][0] > 1.5 * found[1e6, 1e-4][0]
assert found[1e6, 1e-4][1] > 20 * found[1e6, 1e-8][1]
assert np.isclose(found[1.0, 1e-4][1], found[1.0, 1e-8][1], rtol=1e-3)  # with a small C it is as one expects
EOF

# Output seen:
#   C 1, tol 0.0001: 11 steps, |weights| 7.4, loss 59.43
#   C 1, tol 1e-08: 22 steps, |weights| 7.4, loss 59.43
#   C 100, tol 0.0001: 12 steps, |weights| 21.9, loss 321.4
#   C 100, tol 1e-08: 46 steps, |weights| 21.8, loss 321.1
#   C 10000, tol 0.0001: 9 steps, |weights| 28.3, loss 2076
#   C 10000, tol 1e-08: 44 steps, |weights| 37.5, loss 850.7
#   C 1e+06, tol 0.0001: 9 steps, |weights| 28.4, loss 1.617e+05
#   C 1e+06, tol 1e-08: 37 steps, |weights| 54.2, loss 1687
