"""Pretrain step: a class-conditional pixel model from scratch, of any rank from x_0- to u-prediction (Sec. 6.1)."""
