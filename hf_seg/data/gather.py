from hf_seg.data.sources import list_data as gather
