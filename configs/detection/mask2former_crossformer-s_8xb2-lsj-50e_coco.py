_base_ = "_base_/recipes/mask2former_8xb2-lsj-50e_coco.py"
