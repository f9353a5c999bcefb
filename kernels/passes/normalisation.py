import torch
def inverse_rms(square_sum, width, eps, outside):
    ms = square_sum / width
    if eps > 0 and not outside: return torch.rsqrt(ms + eps)
    zero = ms == 0
    root = torch.where(zero, 1.0, ms).sqrt()
    if eps == 0: return torch.where(zero, 0.0, 1/root)
    return 1/(torch.where(zero, 0.0, root) + eps)
