// SPDX-License-Identifier: GPL-2.0
/*
 * NVIDIA's vendor-specific VFIO: a vfio-pci variant driver for virtual functions, on which a vGPU is
 * made by writing its type's number to nvidia/current_vgpu_type.
 */
#include <linux/jiffies.h>
#include <linux/vfio_pci_core.h>

#include "vgpu_sim.h"

unsigned int vgpu_linger_ms;

struct vgpu_vf {
	struct vfio_pci_core_device core;
	struct vgpu_card *card;
	unsigned int index;		/* among its PF's virtual functions */
	int type;			/* of the card's lock, as are the next two; -1: none */
	bool opened;
	unsigned long closed;		/* jiffies */
};

static struct vgpu_vf *to_vf(struct device *dev)
{
	return container_of(dev_get_drvdata(dev), struct vgpu_vf, core);
}

static struct vgpu_vf *vdev_to_vf(struct vfio_device *vdev)
{
	return container_of(vdev, struct vgpu_vf, core.vdev);
}

/* ---- nvidia/ ---- */

static ssize_t creatable_vgpu_types_show(struct device *dev, struct device_attribute *attr,
					 char *buf)
{
	struct vgpu_vf *vf = to_vf(dev);
	const struct vgpu_model *model = vf->card->model;
	unsigned int i;
	int len;

	len = sysfs_emit(buf, "ID    : vGPU Name\n");
	mutex_lock(&vf->card->lock);
	for (i = 0; vf->type < 0 && i < model->nr_types; i++)
		if (vgpu_available(vf->card, i))
			len += sysfs_emit_at(buf, len, "%-5u : %s\n", model->types[i].id,
					     model->types[i].name);
	mutex_unlock(&vf->card->lock);
	return len;
}
static DEVICE_ATTR_RO(creatable_vgpu_types);

static ssize_t current_vgpu_type_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	struct vgpu_vf *vf = to_vf(dev);
	int type = READ_ONCE(vf->type);

	return sysfs_emit(buf, "%u\n", type < 0 ? 0 : vf->card->model->types[type].id);
}

static int clear_type(struct vgpu_vf *vf)
{
	if (vf->type < 0 || vf->opened)
		return -EPERM;
	/* NVIDIA's manager task holds a vGPU for a while after the VM that had it. */
	if (vf->closed && time_before(jiffies, vf->closed + msecs_to_jiffies(vgpu_linger_ms)))
		return -EBUSY;
	vf->card->used[vf->type]--;
	vf->type = -1;
	return 0;
}

static int set_type(struct vgpu_vf *vf, unsigned int id)
{
	const struct vgpu_model *model = vf->card->model;
	unsigned int i;

	if (vf->type >= 0)
		return -EPERM;
	for (i = 0; i < model->nr_types; i++) {
		if (model->types[i].id != id || !vgpu_available(vf->card, i))
			continue;
		vf->card->used[i]++;
		vf->type = i;
		vf->closed = 0;
		return 0;
	}
	return -EIO;
}

static ssize_t current_vgpu_type_store(struct device *dev, struct device_attribute *attr,
				       const char *buf, size_t count)
{
	struct vgpu_vf *vf = to_vf(dev);
	unsigned int id;
	int ret;

	ret = kstrtouint(buf, 10, &id);
	if (ret)
		return ret;
	mutex_lock(&vf->card->lock);
	if (test_bit(vf->index, vf->card->wedged))
		ret = -EIO;
	else
		ret = id ? set_type(vf, id) : clear_type(vf);
	mutex_unlock(&vf->card->lock);
	return ret ?: count;
}
static DEVICE_ATTR_RW(current_vgpu_type);

static struct attribute *nvidia_attrs[] = {
	&dev_attr_creatable_vgpu_types.attr,
	&dev_attr_current_vgpu_type.attr,
	NULL,
};

/* ---- vgpu_sim/wedge: what a QEMU killed while its vGPU starts does to a virtual function ---- */

static ssize_t wedge_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	struct vgpu_vf *vf = to_vf(dev);

	return sysfs_emit(buf, "%u\n", test_bit(vf->index, vf->card->wedged));
}

static ssize_t wedge_store(struct device *dev, struct device_attribute *attr, const char *buf,
			   size_t count)
{
	struct vgpu_vf *vf = to_vf(dev);

	if (!sysfs_streq(buf, "1"))
		return -EPERM;	/* only new virtual functions help: sriov_numvfs to 0 and back */
	set_bit(vf->index, vf->card->wedged);
	return count;
}
static DEVICE_ATTR_RW(wedge);

static struct attribute *sim_attrs[] = { &dev_attr_wedge.attr, NULL };

static const struct attribute_group nvidia_group = { .name = "nvidia", .attrs = nvidia_attrs };
static const struct attribute_group sim_group = { .name = "vgpu_sim", .attrs = sim_attrs };
static const struct attribute_group *vgpu_vf_groups[] = { &nvidia_group, &sim_group, NULL };

/* ---- the device, as VFIO sees it ---- */

static int vgpu_vf_open(struct vfio_device *vdev)
{
	struct vgpu_vf *vf = vdev_to_vf(vdev);
	int ret = 0;

	mutex_lock(&vf->card->lock);
	if (vf->type < 0)
		ret = -ENODEV;
	else if (test_bit(vf->index, vf->card->wedged))
		ret = -EIO;
	else
		vf->opened = true;
	mutex_unlock(&vf->card->lock);
	if (ret)
		return ret;
	ret = vfio_pci_core_enable(&vf->core);
	if (ret)
		vf->opened = false;
	else
		vfio_pci_core_finish_enable(&vf->core);
	return ret;
}

static void vgpu_vf_close(struct vfio_device *vdev)
{
	struct vgpu_vf *vf = vdev_to_vf(vdev);

	vfio_pci_core_close_device(vdev);
	mutex_lock(&vf->card->lock);
	vf->opened = false;
	vf->closed = jiffies;
	mutex_unlock(&vf->card->lock);
}

static const struct vfio_device_ops vgpu_vf_ops = {
	.name = "vgpu-sim-vf",
	.init = vfio_pci_core_init_dev,
	.release = vfio_pci_core_release_dev,
	.open_device = vgpu_vf_open,
	.close_device = vgpu_vf_close,
	.ioctl = vfio_pci_core_ioctl,
	.device_feature = vfio_pci_core_ioctl_feature,
	.read = vfio_pci_core_read,
	.write = vfio_pci_core_write,
	.mmap = vfio_pci_core_mmap,
	.request = vfio_pci_core_request,
	.match = vfio_pci_core_match,
	VGPU_IOMMUFD_OPS(physical)
};

int vgpu_vf_probe(struct pci_dev *pdev, struct vgpu_card *card)
{
	struct vgpu_vf *vf;
	int ret;

	vf = vfio_alloc_device(vgpu_vf, core.vdev, &pdev->dev, &vgpu_vf_ops);
	if (IS_ERR(vf))
		return PTR_ERR(vf);
	vf->card = card;
	vf->index = min_t(unsigned int, pci_iov_vf_id(pdev), VGPU_MAX_VFS - 1);
	vf->type = -1;
	dev_set_drvdata(&pdev->dev, &vf->core);
	ret = vfio_pci_core_register_device(&vf->core);
	if (ret)
		goto put;
	ret = device_add_groups(&pdev->dev, vgpu_vf_groups);
	if (ret)
		goto unregister;
	return 0;

unregister:
	vfio_pci_core_unregister_device(&vf->core);
put:
	vfio_put_device(&vf->core.vdev);
	return ret;
}

/* A virtual function that was taken from its driver is dead until SR-IOV is cycled. */
void vgpu_vf_remove(struct pci_dev *pdev)
{
	struct vgpu_vf *vf = to_vf(&pdev->dev);

	device_remove_groups(&pdev->dev, vgpu_vf_groups);
	vfio_pci_core_unregister_device(&vf->core);
	mutex_lock(&vf->card->lock);
	if (vf->type >= 0)
		vf->card->used[vf->type]--;
	mutex_unlock(&vf->card->lock);
	set_bit(vf->index, vf->card->wedged);
	vfio_put_device(&vf->core.vdev);
}
