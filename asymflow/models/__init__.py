"""Networks: pretrained ones wrapped, published ones built."""
