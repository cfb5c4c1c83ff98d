def precision_recall(a, b, k): raise NotImplementedError
