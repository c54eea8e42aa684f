import torch
def new_optimizer(adapter, lr):
    return torch.optim.AdamW(adapter.parameters(), lr=lr, betas=(0.9, 0.999), weight_decay=5e-4)
