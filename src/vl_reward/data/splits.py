"""The split of a dataset that a setting names."""

from datasets import Dataset, DatasetDict


def split_of(dataset: Dataset | DatasetDict, name: str, setting: str) -> Dataset:
    """
    A split, or the whole set where it has none, as `label_preferences.py` writes it.

    Raises:
        ValueError: If there is no such split. `setting` is what names it in a YAML.
    """
    if isinstance(dataset, Dataset):
        return dataset
    if name not in dataset:
        raise ValueError(f"The set has the splits {', '.join(dataset)}, and `{setting}` is {name}. Name one of them.")
    return dataset[name]
