"""An integer network as C99."""
