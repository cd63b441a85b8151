//! Every method of every stage, one small file each, and the registry that names them
