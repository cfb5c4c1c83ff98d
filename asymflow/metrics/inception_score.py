def inception_score(logits): raise NotImplementedError
