"""Pretrain: a class-conditional pixel model from scratch, of any rank between x_0- and u-prediction (Sec. 6.1)."""
