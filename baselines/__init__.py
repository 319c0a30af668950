"""Methods that speed up an autoregressive model without changing its output, one file each."""
