"""Deep model reassembly: dissect a zoo into interchangeable blocks, choose and stitch the best chain of them."""
