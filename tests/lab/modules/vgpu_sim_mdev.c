// SPDX-License-Identifier: GPL-2.0
/*
 * vGPUs as mediated devices: a function becomes an mdev parent with the types of its card. The
 * devices open in QEMU: a 3D controller with one memory BAR that reads as zeros.
 */
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/vfio.h>

#include "vgpu_sim.h"

#define REGION_SHIFT 40
#define CONFIG_SIZE 256
#define BAR0_SIZE (16 << 20)

struct vgpu_parent {
	struct mdev_parent parent;
	struct vgpu_card *card;
	bool virtfn;
	unsigned int created;		/* of the card's lock */
	struct mdev_type types[VGPU_MAX_TYPES];
	struct mdev_type *type_pointers[VGPU_MAX_TYPES];
};

struct vgpu_mdev {
	struct vfio_device vdev;
	struct vgpu_parent *parent;
	unsigned int type;
	u8 config[CONFIG_SIZE];
};

static struct vgpu_parent *to_parent(struct mdev_type *type)
{
	return container_of(type->parent, struct vgpu_parent, parent);
}

static unsigned int to_index(struct mdev_type *type)
{
	return type - to_parent(type)->types;
}

/* ---- the device, as VFIO sees it ---- */

static struct vgpu_mdev *to_vgpu(struct vfio_device *vdev)
{
	return container_of(vdev, struct vgpu_mdev, vdev);
}

static int vgpu_mdev_open(struct vfio_device *vdev)
{
	return 0;
}

static ssize_t vgpu_mdev_read(struct vfio_device *vdev, char __user *buf, size_t count, loff_t *pos)
{
	unsigned int offset = *pos & (CONFIG_SIZE - 1);

	if (*pos >> REGION_SHIFT == VFIO_PCI_CONFIG_REGION_INDEX) {
		count = min_t(size_t, count, CONFIG_SIZE - offset);
		if (copy_to_user(buf, to_vgpu(vdev)->config + offset, count))
			return -EFAULT;
	} else if (clear_user(buf, count)) {
		return -EFAULT;
	}
	*pos += count;
	return count;
}

static ssize_t vgpu_mdev_write(struct vfio_device *vdev, const char __user *buf, size_t count,
			       loff_t *pos)
{
	struct vgpu_mdev *vgpu = to_vgpu(vdev);
	unsigned int offset = *pos & (CONFIG_SIZE - 1);
	__le32 bar;

	if (*pos >> REGION_SHIFT == VFIO_PCI_CONFIG_REGION_INDEX) {
		count = min_t(size_t, count, CONFIG_SIZE - offset);
		/* What is written is kept, except for who it is and how big its BAR is. */
		if (offset >= PCI_BASE_ADDRESS_0 || offset == PCI_COMMAND) {
			if (copy_from_user(vgpu->config + offset, buf, count))
				return -EFAULT;
			memcpy(&bar, vgpu->config + PCI_BASE_ADDRESS_0, sizeof(bar));
			bar &= cpu_to_le32(~(BAR0_SIZE - 1));
			memcpy(vgpu->config + PCI_BASE_ADDRESS_0, &bar, sizeof(bar));
		}
	}
	*pos += count;
	return count;
}

static int region_info(struct vfio_region_info *info)
{
	if (info->index >= VFIO_PCI_NUM_REGIONS)
		return -EINVAL;
	info->offset = (u64)info->index << REGION_SHIFT;
	info->size = 0;
	info->flags = 0;
	if (info->index == VFIO_PCI_BAR0_REGION_INDEX)
		info->size = BAR0_SIZE;
	else if (info->index == VFIO_PCI_CONFIG_REGION_INDEX)
		info->size = CONFIG_SIZE;
	if (info->size)
		info->flags = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
	return 0;
}

static long vgpu_mdev_ioctl(struct vfio_device *vdev, unsigned int cmd, unsigned long arg)
{
	void __user *user = (void __user *)arg;
	struct vfio_device_info device = {
		.argsz = sizeof(device),
		.flags = VFIO_DEVICE_FLAGS_PCI | VFIO_DEVICE_FLAGS_RESET,
		.num_regions = VFIO_PCI_NUM_REGIONS,
		.num_irqs = VFIO_PCI_NUM_IRQS,
	};
	struct vfio_region_info region;
	struct vfio_irq_info irq;
	int ret;

	switch (cmd) {
	case VFIO_DEVICE_GET_INFO:
		return copy_to_user(user, &device, offsetofend(struct vfio_device_info, num_irqs)) ?
			       -EFAULT : 0;
	case VFIO_DEVICE_GET_REGION_INFO:
		if (copy_from_user(&region, user, sizeof(region)))
			return -EFAULT;
		ret = region_info(&region);
		if (ret)
			return ret;
		return copy_to_user(user, &region, sizeof(region)) ? -EFAULT : 0;
	case VFIO_DEVICE_GET_IRQ_INFO:
		if (copy_from_user(&irq, user, sizeof(irq)))
			return -EFAULT;
		if (irq.index >= VFIO_PCI_NUM_IRQS)
			return -EINVAL;
		irq.flags = VFIO_IRQ_INFO_EVENTFD;
		irq.count = 0;
		return copy_to_user(user, &irq, sizeof(irq)) ? -EFAULT : 0;
	case VFIO_DEVICE_SET_IRQS:
	case VFIO_DEVICE_RESET:
		return 0;
	}
	return -ENOTTY;
}

static int vgpu_mdev_init(struct vfio_device *vdev)
{
	struct mdev_device *mdev = to_mdev_device(vdev->dev);
	struct vgpu_mdev *vgpu = to_vgpu(vdev);
	bool gvtg;

	vgpu->parent = to_parent(mdev->type);
	vgpu->type = to_index(mdev->type);
	gvtg = vgpu->parent->card->rule == VGPU_GVTG;
	*(__le16 *)(vgpu->config + PCI_VENDOR_ID) = cpu_to_le16(gvtg ? 0x8086 : 0x10de);
	*(__le16 *)(vgpu->config + PCI_DEVICE_ID) = cpu_to_le16(gvtg ? 0x3ea0 : 0x1bb3);
	*(__le16 *)(vgpu->config + PCI_CLASS_DEVICE) = cpu_to_le16(PCI_CLASS_DISPLAY_3D);
	return 0;
}

/* vfio_put_device() frees the memory itself since 6.2. */
static void vgpu_mdev_release(struct vfio_device *vdev)
{
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 2, 0)
	vfio_free_device(vdev);
#endif
}

static void vgpu_mdev_dma_unmap(struct vfio_device *vdev, u64 iova, u64 length)
{
	/* It pins no guest memory. */
}

static const struct vfio_device_ops vgpu_mdev_ops = {
	.name = "vgpu-sim",
	.init = vgpu_mdev_init,
	.release = vgpu_mdev_release,
	.open_device = vgpu_mdev_open,
	.read = vgpu_mdev_read,
	.write = vgpu_mdev_write,
	.ioctl = vgpu_mdev_ioctl,
	.dma_unmap = vgpu_mdev_dma_unmap,
	VGPU_IOMMUFD_OPS(emulated)
};

/* ---- create and remove ---- */

/* NVIDIA's host driver answers EIO to whatever its resource manager refuses. */
static int take(struct vgpu_parent *parent, unsigned int type)
{
	struct vgpu_card *card = parent->card;
	int ret = 0;

	mutex_lock(&card->lock);
	if (vgpu_available(card, type) && !(parent->virtfn && parent->created)) {
		parent->created++;
		card->used[type]++;
	} else {
		ret = card->rule == VGPU_GVTG ? -ENOSPC : -EIO;
	}
	mutex_unlock(&card->lock);
	return ret;
}

static void give_back(struct vgpu_parent *parent, unsigned int type)
{
	mutex_lock(&parent->card->lock);
	parent->created--;
	parent->card->used[type]--;
	mutex_unlock(&parent->card->lock);
}

static int vgpu_mdev_probe(struct mdev_device *mdev)
{
	struct vgpu_parent *parent = to_parent(mdev->type);
	unsigned int type = to_index(mdev->type);
	struct vgpu_mdev *vgpu;
	int ret;

	ret = take(parent, type);
	if (ret)
		return ret;
	vgpu = vfio_alloc_device(vgpu_mdev, vdev, &mdev->dev, &vgpu_mdev_ops);
	if (IS_ERR(vgpu)) {
		give_back(parent, type);
		return PTR_ERR(vgpu);
	}
	dev_set_drvdata(&mdev->dev, vgpu);
	ret = vfio_register_emulated_iommu_dev(&vgpu->vdev);
	if (ret) {
		give_back(parent, type);
		vfio_put_device(&vgpu->vdev);
	}
	return ret;
}

static void vgpu_mdev_remove(struct mdev_device *mdev)
{
	struct vgpu_mdev *vgpu = dev_get_drvdata(&mdev->dev);
	struct vgpu_parent *parent = vgpu->parent;
	unsigned int type = vgpu->type;

	vfio_unregister_group_dev(&vgpu->vdev);
	vfio_put_device(&vgpu->vdev);
	give_back(parent, type);
}

static unsigned int vgpu_mdev_get_available(struct mdev_type *mtype)
{
	struct vgpu_parent *parent = to_parent(mtype);
	unsigned int available;

	mutex_lock(&parent->card->lock);
	available = vgpu_available(parent->card, to_index(mtype));
	if (parent->virtfn)	/* a virtual function carries one vGPU */
		available = parent->created ? 0 : min(available, 1U);
	mutex_unlock(&parent->card->lock);
	return available;
}

static ssize_t nvidia_description(struct mdev_type *mtype, char *buf)
{
	const struct vgpu_type *type = &to_parent(mtype)->card->model->types[to_index(mtype)];

	return sysfs_emit(buf,
			  "num_heads=%u, frl_config=%u, framebuffer=%uM, max_resolution=%s, max_instance=%u\n",
			  type->heads, type->frl, type->framebuffer, type->resolution,
			  type->max_instance);
}

static ssize_t gvtg_description(struct mdev_type *mtype, char *buf)
{
	const struct vgpu_type *type = &to_parent(mtype)->card->model->types[to_index(mtype)];

	return sysfs_emit(buf,
			  "low_gm_size: %uMB\nhigh_gm_size: %uMB\nfence: %u\nresolution: %s\nweight: %u\n",
			  type->low_gm, type->framebuffer, type->fence, type->resolution,
			  type->weight);
}

struct mdev_driver vgpu_nvidia_mdev_driver = {
	.device_api = VFIO_DEVICE_API_PCI_STRING,
	.probe = vgpu_mdev_probe,
	.remove = vgpu_mdev_remove,
	.get_available = vgpu_mdev_get_available,
	.show_description = nvidia_description,
	.driver = { .name = "nvidia-vgpu-vfio", .owner = THIS_MODULE, .mod_name = KBUILD_MODNAME },
};

struct mdev_driver vgpu_gvtg_mdev_driver = {
	.device_api = VFIO_DEVICE_API_PCI_STRING,
	.probe = vgpu_mdev_probe,
	.remove = vgpu_mdev_remove,
	.get_available = vgpu_mdev_get_available,
	.show_description = gvtg_description,
	.driver = { .name = "intel_vgpu_mdev", .owner = THIS_MODULE, .mod_name = KBUILD_MODNAME },
};

int vgpu_parent_probe(struct pci_dev *pdev, struct vgpu_card *card)
{
	bool gvtg = card->rule == VGPU_GVTG;
	struct vgpu_parent *parent;
	unsigned int i;
	int ret;

	parent = kzalloc(sizeof(*parent), GFP_KERNEL);
	if (!parent)
		return -ENOMEM;
	parent->card = card;
	parent->virtfn = pdev->is_virtfn;
	for (i = 0; i < card->model->nr_types; i++) {
		parent->types[i].sysfs_name = card->model->types[i].sysfs_name;
		parent->types[i].pretty_name = card->model->types[i].name;
		parent->type_pointers[i] = &parent->types[i];
	}
	pci_set_drvdata(pdev, parent);
	ret = mdev_register_parent(&parent->parent, &pdev->dev,
				   gvtg ? &vgpu_gvtg_mdev_driver : &vgpu_nvidia_mdev_driver,
				   parent->type_pointers, card->model->nr_types);
	if (ret)
		kfree(parent);
	return ret;
}

void vgpu_parent_remove(struct pci_dev *pdev)
{
	struct vgpu_parent *parent = pci_get_drvdata(pdev);

	mdev_unregister_parent(&parent->parent);
	kfree(parent);
}
