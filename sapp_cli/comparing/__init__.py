"""Methods × block sizes × sparsities × seeds on one budget: the cells, their processes, the table, the plots."""
