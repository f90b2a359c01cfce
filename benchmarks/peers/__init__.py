"""The same weights, the same work: this project's decode loop against CTranslate2 and transformers."""
