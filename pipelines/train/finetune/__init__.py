"""Finetune: the lifted model on real pixels, by Ray Train and DeepSpeed (Sec. 5.2, appendices A.3, A.4, B.2)."""
