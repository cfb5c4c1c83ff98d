"""Finetune step: train the lifted model on pixels with Ray Train and DeepSpeed (Sec. 5.2, App. A.3, A.4, B.2)."""
