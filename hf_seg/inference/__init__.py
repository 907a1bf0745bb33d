"""A trained model at work: photographs in, masks out; other runtimes; a page to try it on."""
