#!/usr/bin/env bash
# scikit-learn 1.9.1, numpy 2.4.6, Python 3.11.
#
# Expected: top_k_accuracy_score with k=1 is accuracy_score of the most probable class, as argmax gives it.
# Seen: of equal scores argmax takes the first class, top_k_accuracy_score the last. Where scores tie, as of a model in
# low precision or one that is sure of nothing, top-1 by the one is not top-1 by the other, and top-5 may leave out the
# class that is reported as the prediction. (Its documentation says which it takes, but not that the others differ.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check scikit-learn==1.9.1 numpy==2.4.6

cat > ties.py << 'EOF'
import numpy as np
from sklearn.metrics import accuracy_score, top_k_accuracy_score

scores, labels = np.full((4, 3), 1 / 3), np.array([0, 0, 1, 2])
print(accuracy_score(labels, scores.argmax(1)), top_k_accuracy_score(labels, scores, k=1, labels=[0, 1, 2]))
EOF
said=$(venv/bin/python ties.py)
echo "accuracy of argmax, top-1 accuracy: $said"
[ "$said" = "0.5 0.25" ]
