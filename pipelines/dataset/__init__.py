"""Sets of images made and measured: the embedded one, `data check`, `data prepare` and `data statistics`."""
