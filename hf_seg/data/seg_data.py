from hf_seg.data import SegData, load_data
