"""torch's AdamW without torch's compiler, whose import takes as long as torch's own."""

from inspect import unwrap

import torch

Plain = torch.optim.AdamW


class AdamW(Plain):
    """The same steps. torch wraps an optimizer's methods for when its compiler traces them, and the wrappers import the
    compiler; here are the methods without wrappers (unchanged where a release of torch has none)."""

    state_dict, load_state_dict = unwrap(Plain.state_dict), unwrap(Plain.load_state_dict)
    zero_grad, add_param_group = unwrap(Plain.zero_grad), unwrap(Plain.add_param_group)
    step = torch.no_grad()(unwrap(Plain.step))
